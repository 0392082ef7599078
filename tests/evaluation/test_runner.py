"""A run keeps what it has, goes on where it was, and refuses to be mixed with another one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.judges.base import JudgeRequest, Judges
from bagel_mot.evaluation.run_summary import read_summaries, summarize, write_summary
from bagel_mot.evaluation.runner import ItemRunner, batches
from bagel_mot.evaluation.team import Team
from tests.evaluation.scripted import Knowing, sums

IDS = [f"{n}+1" for n in range(12)]


def run(folder: Path, respondent: Any, variant: str | None = None, judges: Judges | None = None, **more: Any) -> Any:
    benchmark = sums(variant)
    judge = {} if judges is None else {"model": "gpt 4/x"}
    runner = ItemRunner(benchmark, respondent, folder, judges, judge=judge, batch=4)
    runner.run(benchmark.items(), **more)
    return summarize(runner, benchmark.items(), 12)


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Knowing(stop_at="9+1"), progress=lambda *now: told.append(now))
    assert told[0] == (0, 12)
    assert told[-1] == (8, 12)
    with open(tmp_path / "scores.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": "8+1", "sco')  # the process was killed within a line
    again = Knowing(wrong=("9+1", "11+1"))
    report = run(tmp_path, again)
    assert again.asked == IDS[8:]
    assert report["rows"]["all"]["value"] == pytest.approx(10 / 12)
    assert (report["scored"], report["truncated"], report["failed"]) == (12, 1, {})
    assert (tmp_path / "images" / "drawn" / "11.png").is_file()
    last = Knowing()
    assert run(tmp_path, last)["rows"] == report["rows"]
    assert last.asked == []


def test_items_that_fail_are_named_and_tried_again(tmp_path: Path) -> None:
    report = run(tmp_path, Knowing(broken=("3+1",)))
    assert report["failed"] == {"3+1": "the image of 3+1 cannot be read."}
    assert report["scored"] == 11
    mended = Knowing()
    assert run(tmp_path, mended)["failed"] == {}
    assert mended.asked == ["3+1"]


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Knowing())
    other = Knowing()
    other.facts["model"] = "another"
    with pytest.raises(EvaluationError, match="its model is 'knowing', and now it is 'another'"):
        run(tmp_path, other)
    lines = (tmp_path / "items.jsonl").read_text().splitlines()
    (tmp_path / "items.jsonl").write_text("\n".join([lines[0], "nonsense", *lines[1:]]) + "\n")
    with pytest.raises(EvaluationError, match=r"line 2 of .* is not a record of an item"):
        run(tmp_path, Knowing())


class Judging:
    """Finds everything right until it is down; gives no reply to one question."""

    def __init__(self, down_after: int = 99, silent: str = "") -> None:
        self.down_after, self.silent, self.calls = down_after, silent, 0
        self.lock = threading.Lock()

    def complete(self, request: JudgeRequest) -> str | None:
        with self.lock:
            self.calls += 1
            if self.calls > self.down_after:
                raise EvaluationError("the judge is down.")
        return None if self.silent and str(request.messages[0].content[0]).startswith(self.silent) else "1"


def test_a_judge_that_is_down_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="the judge is down"):
        run(tmp_path, Knowing(), "judged", Judges(chat=Judging(down_after=5)))
    again, judge = Knowing(), Judging(silent="7 + 1")
    report = run(tmp_path, again, "judged", Judges(chat=judge))
    assert judge.calls == 12 - 5
    assert (report["scored"], report["unscored"], report["unparsable"]) == (12, ["7+1"], 1)
    assert report["judge"] == {"model": "gpt 4/x"}
    final = run(tmp_path, again, "judged", Judges(chat=(more := Judging())), retry=True)
    assert (more.calls, final["unscored"]) == (1, [])
    assert write_summary(tmp_path, final).name == "summary@gpt-4-x.json"
    assert list(read_summaries(tmp_path).values()) == [json.loads(json.dumps(final))]


def test_results_without_scores_are_scored_later(tmp_path: Path) -> None:
    assert run(tmp_path, Knowing(), score=False)["scored"] == 0
    again = Knowing()
    assert run(tmp_path, again)["scored"] == 12
    assert again.asked == []


class Store:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.lock = threading.Lock()

    def add(self, key: str, count: int) -> int:
        with self.lock:
            self.counts[key] = self.counts.get(key, 0) + count
            return self.counts[key]


def test_processes_share_the_items_by_groups_and_read_one_another(tmp_path: Path) -> None:
    store, respondents, totals = Store(), [Knowing(), Knowing(wrong=("2+1",))], []

    def work(rank: int) -> None:
        benchmark = sums()
        launch: Any = SimpleNamespace(rank=rank, world=2, store=store)
        runner = ItemRunner(benchmark, respondents[rank], tmp_path, batch=3, team=Team(launch, "sums"))
        runner.run(benchmark.items(), lambda done, total: totals.append(done))
        runner.team.wait()
        runner.read_again()
        assert summarize(runner, benchmark.items(), 12)["rows"]["all"]["value"] == pytest.approx(11 / 12)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert respondents[0].asked == ["0+1", "1+1", "4+1", "5+1", "8+1", "9+1"]
    assert sorted(respondents[0].asked + respondents[1].asked) == sorted(IDS)
    assert max(totals) == 12
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {
        f"{name}{number}.jsonl" for name in ("items", "scores") for number in ("", ".1")
    }
    one = Knowing()
    assert run(tmp_path, one)["scored"] == 12  # one process goes on with what two have done
    assert one.asked == []


def test_batches_keep_groups_whole() -> None:
    found = [[item.id for item in batch] for batch in batches(sums().items(), 3)]
    assert [len(batch) for batch in found] == [2] * 6
    assert [id for batch in found for id in batch] == IDS
