"""The Qwen2 tokenizer: a byte-level BPE, read from either official form, or trained for the embedded model.

Two forms on disk say the same: `tokenizer.json`, or `vocab.json` + `merges.txt` + `tokenizer_config.json`. Text is
normalised to NFC, split by Qwen2's regular expression, mapped byte by byte to printable characters (GPT-2's table) and
merged. Decoding is our own: ids to bytes, bytes to UTF-8, invalid bytes to U+FFFD, so that a stream of ids and the
whole list give the same text.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from bagel_mot.errors import PromptError, SettingError, TokenizerError
from bagel_mot.files import read_json, read_text, write_text

BOS = "<|im_start|>"
EOS = "<|im_end|>"
START_OF_IMAGE = "<|vision_start|>"
END_OF_IMAGE = "<|vision_end|>"
PAD = "<|endoftext|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, START_OF_IMAGE, END_OF_IMAGE)  # in the order of the official vocabulary

# Contractions; a word with one leading character that is neither letter nor digit; single digits; punctuation; spaces.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class SpecialTokens(NamedTuple):
    """Ids of the tokens that delimit texts (`bos`, `eos`) and images."""

    bos: int
    eos: int
    start_of_image: int
    end_of_image: int


class Tokenizer:
    """Text to token ids and back.

    Special tokens written out in a text, such as the literal "<|im_end|>", are encoded as those tokens, not letter by
    letter, as the published tokenizer does. An interface for strangers should remove them from what it is given.

    Attributes:
        special: the ids of `<|im_start|>`, `<|im_end|>`, `<|vision_start|>` and `<|vision_end|>`.
        vocab_size: number of tokens, the added ones included; the model's embedding may have more rows.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wraps a byte-level BPE of the `tokenizers` library.

        Raises:
            TokenizerError: if it is no byte-level BPE, or lacks one of the four tokens that the model needs.
        """
        if not isinstance(backend.model, models.BPE) or not isinstance(backend.decoder, decoders.ByteLevel):
            raise TokenizerError(
                f"the tokenizer is a {type(backend.model).__name__} model with a {type(backend.decoder).__name__} "
                "decoder: a byte-level BPE, as Qwen2 has, is needed."
            )
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {index: token.content.encode() for index, token in added.items()}
        self._special = frozenset(index for index, token in added.items() if token.special)
        self.special = SpecialTokens(*map(self._required, (BOS, EOS, START_OF_IMAGE, END_OF_IMAGE)))
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Reads the tokenizer of a checkpoint folder.

        Args:
            folder: holds `tokenizer.json`, or `vocab.json`, `merges.txt` and `tokenizer_config.json`; the first is
                preferred.

        Raises:
            TokenizerError: if neither form is complete, a file is damaged, or a token that the model needs is missing.
        """
        folder = Path(folder)
        single = folder / "tokenizer.json"
        if single.is_file():
            try:
                return cls(tokenizers.Tokenizer.from_str(read_text(single, TokenizerError)))
            except TokenizerError:
                raise
            except Exception as error:  # the library raises bare Exception
                raise TokenizerError(f"{single} is damaged ({error}): download it anew.") from error
        paths = [folder / name for name in ("vocab.json", "merges.txt", "tokenizer_config.json")]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise TokenizerError(
                f"{folder} has no tokenizer.json and lacks {', '.join(missing)}: put tokenizer.json there, or "
                "vocab.json, merges.txt and tokenizer_config.json."
            )
        return cls(_from_parts(*paths))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns a byte-level BPE with Qwen2's normaliser, split and special tokens.

        Args:
            texts: the corpus; the result depends on its contents alone.
            vocab_size: tokens in all: 256 bytes, merges, special tokens. A small corpus may give fewer.

        Raises:
            SettingError: if `vocab_size` leaves no room for the bytes and the special tokens.
        """
        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise SettingError(f"vocab_size is {vocab_size}: at least {smallest} are needed, for bytes and specials.")
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        backend.train_from_iterator(texts, trainer)
        # Added after training, so that they come after the merges, as in the official vocabulary.
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start or end token.

        Raises:
            PromptError: if the text is not a str, or holds lone surrogates (half of a UTF-16 pair).
        """
        if not isinstance(text, str):
            raise PromptError(f"a text is needed, not a {type(text).__name__}.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text has the lone surrogate {text[error.start]!r} at position {error.start}: "
                "it is no valid Unicode; decode it properly first."
            ) from error
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of ids; bytes that are not valid UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            skip_special: leave out special tokens instead of writing them.

        Raises:
            TokenizerError: if an id is not in the vocabulary.
        """
        data = b"".join(self.token_bytes(index) for index in ids if not (skip_special and index in self._special))
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, index: int) -> bytes:
        """The bytes of one token, which need not be whole characters.

        Raises:
            TokenizerError: if the id is not in the vocabulary.
        """
        if index in self._added:
            return self._added[index]
        token = self._backend.id_to_token(index) if index >= 0 else None
        if token is None:
            raise TokenizerError(f"token id {index} is not in the vocabulary of {self.vocab_size} tokens.")
        table = _byte_of_character()
        try:
            return bytes(table[character] for character in token)
        except KeyError as error:
            raise TokenizerError(f"token {index}, {token!r}, is not byte-level: the tokenizer is damaged.") from error

    def is_special(self, index: int) -> bool:
        """Whether an id is a special token, one that `skip_special` leaves out."""
        return index in self._special

    def detokenizer(self, skip_special: bool = False) -> Detokenizer:
        """A new `Detokenizer` for one stream of ids."""
        return Detokenizer(self, skip_special)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes both official forms: tokenizer.json, vocab.json, merges.txt and tokenizer_config.json.

        Each file is written under a temporary name, then renamed. The folder is created where needed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self._backend.to_str())["model"]
        vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        write_text(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        write_text(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
        write_text(folder / "tokenizer_config.json", json.dumps(self._config(), ensure_ascii=False, indent=2) + "\n")

    def _config(self) -> dict[str, Any]:
        added = sorted(self._backend.get_added_tokens_decoder().items())
        special = [token.content for _, token in added if token.special]
        return {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(index): {
                    "content": token.content,
                    "lstrip": token.lstrip,
                    "normalized": token.normalized,
                    "rstrip": token.rstrip,
                    "single_word": token.single_word,
                    "special": token.special,
                }
                for index, token in added
            },
            "additional_special_tokens": [content for content in special if content != PAD],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": EOS,
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": PAD if PAD in special else None,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }

    def _required(self, token: str) -> int:
        index = self._backend.token_to_id(token)
        if index is None or index not in self._added:
            raise TokenizerError(f"the tokenizer has no added token {token}: its added_tokens must list it.")
        return int(index)


class Detokenizer:
    """Text of a stream of ids, as soon as characters are complete.

    The concatenation of everything `add` and `finish` return equals `Tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, index: int) -> str:
        """Takes the next id and returns the text that it completes, possibly "".

        Raises:
            TokenizerError: if the id is not in the vocabulary.
        """
        if self._skip_special and self._tokenizer.is_special(index):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(index))

    def finish(self) -> str:
        """The rest of the text, an incomplete character as U+FFFD; the next id begins a new stream."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """Puts Qwen2's normaliser, pre-tokenizer and decoder around a model."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _from_parts(vocab_path: Path, merges_path: Path, config_path: Path) -> tokenizers.Tokenizer:
    vocab = read_json(vocab_path, TokenizerError)
    merges = _read_merges(merges_path)
    try:
        backend = _byte_level(models.BPE(vocab, merges))
    except Exception as error:  # the library raises bare Exception, e.g. for a merge of unknown tokens
        raise TokenizerError(f"{vocab_path} and {merges_path.name} do not fit together ({error}).") from error
    listed = read_json(config_path, TokenizerError).get("added_tokens_decoder")
    if not isinstance(listed, Mapping):
        raise TokenizerError(f"{config_path} has no added_tokens_decoder, which lists the special tokens.")
    try:
        added = [(int(index), AddedToken(**fields)) for index, fields in listed.items()]
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"{config_path}: added_tokens_decoder is damaged ({error}).") from error
    for index, token in sorted(added, key=lambda item: item[0]):
        backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if found != index:
            raise TokenizerError(
                f"{config_path} gives {token.content} the id {index}, but after {vocab_path.name} it gets {found}: "
                "added tokens must follow the vocabulary without gaps."
            )
    return backend


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = read_text(path, TokenizerError).split("\n")
    except TokenizerError:
        raise
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}): download it anew.") from error
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise TokenizerError(f"{path}, line {number}: {line!r} is not two tokens separated by a space.")
        merges.append((parts[0], parts[1]))
    return merges


@lru_cache(maxsize=1)
def _byte_of_character() -> Mapping[str, int]:
    """GPT-2's table: printable Latin-1 characters are their own byte, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + offset): byte for offset, byte in enumerate(others)})
    return table
