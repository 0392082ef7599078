"""Runs the items of a benchmark: asks a respondent, has the results scored, and keeps both, so that the same run goes
on where it was.

Results and scores are records of their own. A judge that fails leaves the results, and another judge scores them anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from bagel_mot.errors import BagelError
from bagel_mot.evaluation.base import Benchmark, Item, ItemResult, Score
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.records import Records
from bagel_mot.evaluation.respondents.base import ITEM_ERRORS, Answered, Respondent, StoppedError
from bagel_mot.evaluation.team import Team

Progress = Callable[[int, int], None]
"""Is called with the items done, and how many there are in all."""
IMAGES = "images"
RESULTS = "items"


@dataclass
class Findings:
    """The results and scores of the items of a run, as far as they are known.

    Attributes:
        results: the results by item.
        scores: the scores by item.
        failed: the items that could not be answered or scored, with the sentence that says why.
        seconds: the time that each result took, a batch's time divided among its items.
    """

    results: dict[str, ItemResult] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def unparsable(self) -> int:
        """The answers and replies that could not be read."""
        return sum(score.unparsable for score in self.scores.values())

    @property
    def unscored(self) -> list[str]:
        """The items that have a score without a single number."""
        return [id for id, score in self.scores.items() if all(value is None for value in score.values.values())]


class ItemRunner:
    """Answers and scores items.

    Args:
        benchmark: the benchmark whose items they are.
        respondent: the model or server that answers.
        folder: the folder of the records and of drawn images.
        judges: the judges that a benchmark may ask.
        judge: the judge and its settings, as JSON, for the head of the scores; empty without any.
        batch: the number of items that run together.
        threads: the items that are scored at once, by a judge that is asked over the network.
        team: this process among those of the run.
        facts: further entries of the head of the records.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        respondent: Respondent,
        folder: Path,
        judges: Judges | None = None,
        *,
        judge: Mapping[str, Any] | None = None,
        batch: int = 8,
        threads: int = 8,
        team: Team | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.benchmark, self.respondent, self.judges, self.folder = benchmark, respondent, judges or Judges(), folder
        self.batch, self.threads, self.team = batch, threads, team or Team()
        self.images = folder / IMAGES
        self.judge = dict(judge or {})
        head = {**head_of(benchmark), **(facts or {}), **respondent.facts}
        self.results = Records(folder, RESULTS, head, self.team.rank)
        self.scores = Records(folder, scores_name(self.judge), {**head, "judge": self.judge}, self.team.rank)

    def run(
        self, items: Sequence[Item], progress: Progress | None = None, *, score: bool = True, retry: bool = False
    ) -> None:
        """Answers and scores this process's part of the items, but for those that are known.

        Items that failed before are tried again.

        Args:
            items: the items of all processes.
            progress: is told how far all processes are.
            score: whether to score; without, only results are made.
            retry: whether items whose score has no number are scored again.

        Raises: EvaluationError if the judge or the respondent refuses for good; what is done is kept.
        """
        tell = progress or (lambda done, total: None)
        own = self.team.part(items)
        known = [item for item in own if self._is_done(item, score, retry)]
        tell(self.team.done(len(known)), len(items))
        left = {item.id: item for item in own}
        for item in known:
            del left[item.id]
        unanswered = [item for item in left.values() if "result" not in self.results.lines.get(item.id, {})]
        answered = [item for item in left.values() if item.id not in {one.id for one in unanswered}]
        with _Scoring(self, score and self.judges.chat is not None) as scoring:
            for done in self._steps(answered, unanswered, scoring if score else None):
                tell(self.team.done(done), len(items))
        self.results.close()
        self.scores.close()

    def outcomes(self, items: Iterable[Item]) -> Findings:
        """The contents of this run's records for the items, from all processes."""
        found = Findings()
        for item in items:
            line = self.results.lines.get(item.id)
            if line is None:
                continue
            if "result" not in line:
                found.failed[item.id] = line["error"]
                continue
            found.results[item.id] = result_from(line["result"], self.images)
            found.seconds[item.id] = line["seconds"]
            score = self.scores.lines.get(item.id)
            if score is not None and "score" in score:
                found.scores[item.id] = Score(**score["score"])
            elif score is not None:
                found.failed[item.id] = score["error"]
        return found

    def read_again(self) -> None:
        """Reads what the other processes have written meanwhile."""
        for records in (self.results, self.scores):
            records.lines |= Records(records.folder, records.name, records.head).lines

    def _is_done(self, item: Item, score: bool, retry: bool) -> bool:
        if "result" not in self.results.lines.get(item.id, {}):
            return False
        line = self.scores.lines.get(item.id, {})
        if not score:
            return True
        return "score" in line and not (retry and all(value is None for value in line["score"]["values"].values()))

    def _steps(self, answered: Sequence[Item], unanswered: Sequence[Item], scoring: _Scoring | None) -> Iterator[int]:
        """Does the work, and yields how many items have become done with each step."""
        for item in answered:
            if scoring is not None:
                yield scoring.take(item, result_from(self.results.lines[item.id]["result"], self.images))
        for batch in batches(unanswered, self.batch):
            started = time.perf_counter()
            stopped: StoppedError | None = None
            outcomes: Sequence[Answered | None]
            try:
                outcomes = self.respondent.answer(batch, self.images)
            except StoppedError as error:
                stopped, outcomes = error, error.outcomes
            seconds = round((time.perf_counter() - started) / len(batch), 3)
            had = [(item, outcome) for item, outcome in zip(batch, outcomes, strict=True) if outcome is not None]
            for item, outcome in had:  # all of them, before a judge can fail
                self._keep(item, outcome, seconds)
            if stopped is not None:
                raise stopped
            for item, outcome in had:
                yield 1 if scoring is None or isinstance(outcome, BagelError) else scoring.take(item, outcome)
        if scoring is not None:
            yield from scoring.rest()

    def _keep(self, item: Item, outcome: Answered, seconds: float) -> None:
        """Writes the record of an item's result, or of the error that is about this item."""
        if isinstance(outcome, BagelError):
            record: dict[str, Any] = {"error": str(outcome), "seconds": seconds}
        else:
            record = {"result": result_json(outcome, self.images), "prompt": item.prompt, "seconds": seconds}
        self.results.add(item.id, record)


class _Scoring:
    """Scores results: at once, or in threads while the next are made. Records are written by the calling thread."""

    def __init__(self, runner: ItemRunner, in_threads: bool) -> None:
        self.runner = runner
        self.pool = ThreadPoolExecutor(runner.threads) if in_threads else None
        self.running: dict[Future[Score], Item] = {}

    def __enter__(self) -> _Scoring:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is None:
            return
        self.pool.shutdown(wait=True, cancel_futures=True)
        for future, item in self.running.items():  # scores that came while another item failed are kept
            if not future.cancelled() and future.exception() is None:
                self._keep(item, future.result)

    def take(self, item: Item, result: ItemResult) -> int:
        """Scores a result, soon or at once; returns how many scores have been had meanwhile."""
        if self.pool is None:
            return self._keep(item, lambda: self.runner.benchmark.score(item, result, self.runner.judges))
        future = self.pool.submit(self.runner.benchmark.score, item, result, self.runner.judges)
        self.running[future] = item
        return self._collect(wait(self.running, 0).done)

    def rest(self) -> Iterator[int]:
        """Waits for all scores, and yields how many have been had."""
        while self.running:
            yield self._collect(wait(self.running, return_when=FIRST_COMPLETED).done)

    def _collect(self, done: Iterable[Future[Score]]) -> int:
        return sum(self._keep(self.running.pop(future), future.result) for future in list(done))

    def _keep(self, item: Item, score: Callable[[], Score]) -> int:
        try:
            record: dict[str, Any] = {"score": asdict(score())}
        except ITEM_ERRORS as error:
            record = {"error": str(error)}
        self.runner.scores.add(item.id, record)
        return 1


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Parts of the items with about `size` results each; items of one group, whose inputs are equal, stay together."""
    batch: list[Item] = []
    count = 0
    for _, unit in groupby(items, key=lambda item: item.group or f"\0{item.id}"):
        together = list(unit)
        results = sum(len(item.seeds) for item in together)
        if batch and count + results > size:
            yield batch
            batch, count = [], 0
        batch += together
        count += results
    if batch:
        yield batch


def head_of(benchmark: Benchmark) -> dict[str, Any]:
    """The facts of a benchmark that stand at the head of a run's records."""
    options = benchmark.options
    return {
        "benchmark": benchmark.info.name,
        "variant": options.variant or next(iter(benchmark.info.variants), None),
        "protocol": str(options.protocol),
        "think": options.think,
        "data": benchmark.fingerprint(),
    }


def scores_name(judge: Mapping[str, Any]) -> str:
    """The name of the records of scores: scores of each judge have their own."""
    if not judge:
        return "scores"
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in str(judge.get("model", "judge")))
    return f"scores@{name}"


def result_json(result: ItemResult, images: Path) -> dict[str, Any]:
    """A result as its record holds it, with paths below the folder of images."""
    paths = [path.relative_to(images).as_posix() for path in result.images]
    return {"texts": list(result.texts), "images": paths, "truncated": list(result.truncated)}


def result_from(record: Mapping[str, Any], images: Path) -> ItemResult:
    """The result that a record holds."""
    return ItemResult(
        texts=tuple(record["texts"]),
        images=tuple(images / path for path in record["images"]),
        truncated=tuple(record["truncated"]),
    )
