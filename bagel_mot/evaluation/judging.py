"""The judges of a run, from the command line's options and what the benchmark needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.base import BenchmarkInfo
from bagel_mot.evaluation.judges.base import Judges

_COUNTS = ("calls", "cached", "failed", "prompt_tokens", "completion_tokens")


def open_judges(info: BenchmarkInfo, url: str | None, model: str | None, cache: Path) -> tuple[Judges, dict[str, Any]]:
    """The judges that a benchmark needs, and the facts about them for the head of the scores.

    Args:
        info: the benchmark.
        url: the address of a server with a judge, or None.
        model: the judge's name there; None takes the one that the benchmark names.
        cache: the folder of the judge's replies.

    Raises: EvaluationError if the benchmark needs a judge and none is given.
    """
    if info.needs == "a detector":
        from bagel_mot.evaluation.judges.detector import CLASSIFIER, DETECTOR, ClipClassifier, Mask2FormerDetector

        facts = {"model": str(DETECTOR), "classifier": str(CLASSIFIER)}
        return Judges(detector=Mask2FormerDetector(), classifier=ClipClassifier()), facts
    if url is None:
        if info.needs == "a judge":
            raise EvaluationError(
                f"{info.name} needs a judge: give --judge URL and --judge-model NAME, or --results-only to score later."
            )
        return Judges(), {}
    if "judge" not in info.needs:
        return Judges(), {}
    from bagel_mot.evaluation.judges.chat import ChatJudge

    judge = ChatJudge(url, model, cache=cache)
    about = {key: value for key, value in judge.about().items() if key not in _COUNTS}
    return Judges(chat=judge), {**about, "model": model or "as the benchmark names it"}
