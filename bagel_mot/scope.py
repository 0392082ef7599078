"""The world that a small checkpoint was trained on, so that users can be told when a prompt is outside it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from bagel_mot.errors import CheckpointError
from bagel_mot.files import read_text

_WORD = re.compile(r"[^\W\d_]+")
_NAMED = 3


@dataclass(frozen=True)
class Scope:
    """The knowledge of a checkpoint, as its `bagel_scope.yaml` states it.

    Attributes:
        about: its world in a few words, such as "a toy world of 64×64 images".
        words: all words that it has read, in lower case; none where that is not known.
    """

    about: str
    words: tuple[str, ...] = ()

    def to_yaml(self) -> str:
        """The content of the file."""
        return yaml.safe_dump(asdict(self), allow_unicode=True, sort_keys=False, default_flow_style=None, width=120)

    def hint(self, text: str) -> str | None:
        """One sentence if a text has words that the checkpoint has never read; None otherwise."""
        unknown = [word for word in dict.fromkeys(words_of(text)) if word not in self.words] if self.words else []
        if not unknown:
            return None
        named = ", ".join(repr(word) for word in unknown[:_NAMED]) + (", …" if len(unknown) > _NAMED else "")
        return f"this model has never read {named}: it knows {self.about}."


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, in their order."""
    return _WORD.findall(text.lower())


def read_scope(path: Path) -> Scope | None:
    """The scope in a checkpoint's file; None where there is no such file.

    Raises:
        CheckpointError: the file is damaged, or holds something else.
    """
    try:
        raw = yaml.safe_load(read_text(path, CheckpointError))
    except FileNotFoundError:
        return None
    except CheckpointError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} could not be read as YAML: {error}") from error
    known = isinstance(raw, dict) and set(raw) <= {"about", "words"} and isinstance(raw.get("about"), str)
    words = raw.get("words", []) if known else None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CheckpointError(f'{path} must have no keys but "about", a text, and "words", a list of texts.')
    return Scope(raw["about"], tuple(words))
