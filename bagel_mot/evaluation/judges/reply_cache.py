"""Replies of judges on disk, so that nothing is asked, or paid for, twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bagel_mot.errors import EvaluationError
from bagel_mot.files import write_text, writing


class ReplyCache:
    """A folder of replies, one file each, named by the hash of the question.

    Two processes may share one. A damaged file counts as missing.

    Args:
        folder: is made when the first reply is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, question: Mapping[str, Any]) -> str | None:
        """The reply to a question, which is JSON; None if there is none yet."""
        try:
            kept = json.loads(self._file(question).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        reply = kept.get("reply") if isinstance(kept, dict) else None
        return reply if isinstance(reply, str) else None

    def put(self, question: Mapping[str, Any], reply: str) -> None:
        """Keeps a reply.

        Raises:
            EvaluationError: the folder cannot be written.
        """
        path = self._file(question)
        try:
            with writing(path, "give the judge's replies another folder"):
                write_text(path, json.dumps({"model": question.get("model"), "reply": reply}, ensure_ascii=False))
        except ValueError as error:
            raise EvaluationError(str(error)) from error

    def _file(self, question: Mapping[str, Any]) -> Path:
        text = json.dumps(question, sort_keys=True, ensure_ascii=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"
