"""The kind `row`: every outcome of a row, with its probability, its items and its length."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from bagel_mot.verify.data.judge import RecordJudge
from bagel_mot.verify.data.plans import (
    Outcome,
    SamplePlan,
    outcomes_of,
    planned_length,
    recorded_plan,
    without_pictures,
)
from bagel_mot.verify.data.recorded import FAULT, QUIRK, RecordedData

Outcomes = list[tuple[Fraction, Outcome]]


def judge_row(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges a row twice: with images opened as published, where everything agrees; and as here by default."""
    case = judge.case
    published = outcomes_of(recorded, case, "published")
    if judge.mark == FAULT:
        return _judge_fault(recorded, judge, published)
    _judge_outcomes(recorded, judge, published, "")
    upright = outcomes_of(recorded, case, "upright")
    if judge.mark == QUIRK:
        judge.same("by default", _shown(upright), _shown(published), may_differ=judge.quirk)
    else:
        _judge_outcomes(recorded, judge, upright, "by default: ")
    return None


def _shown(outcomes: Outcomes) -> list[Any]:
    """The probability of each outcome and the sizes of its images, which is what openers differ in."""
    sizes = [None if o.plan is None else [item[2] for item in o.plan if item[0] != "text"] for _, o in outcomes]
    return [(str(p), "skipped" if shown is None else shown) for (p, _), shown in zip(outcomes, sizes, strict=True)]


def _judge_outcomes(recorded: RecordedData, judge: RecordJudge, outcomes: Outcomes, prefix: str) -> None:
    want: dict[SamplePlan | None, Fraction] = {}
    for outcome in judge.case["outcomes"]:
        plan = recorded_plan(outcome)
        want[plan] = want.get(plan, Fraction(0)) + Fraction(*outcome["weight"])
    judge.same(f"{prefix}sum of weights", sum(want.values()), Fraction(1))
    got = {outcome.plan: (probability, outcome) for probability, outcome in outcomes}
    for number, outcome in enumerate(judge.case["outcomes"]):
        plan, what = recorded_plan(outcome), f"{prefix}outcome {number}"
        if plan not in got:
            judge.same(what, [o.plan or o.reason for _, o in outcomes], plan)
            continue
        probability, ours = got[plan]
        judge.same(f"{what}: weight", probability, want[plan])
        if plan is None:
            judge.holds(f"{what}: reason", bool(ours.reason), ours.reason or "no reason is given")
            continue
        assert ours.sample is not None
        assert ours.document is not None
        length = ours.sample.und_len + ours.sample.gen_len
        judge.same(f"{what}: length", length, outcome["length"])
        judge.same(f"{what}: tokens", length - 2 * len(plan), outcome["tokens"])
        if "length_official" in outcome:
            dataset = recorded.dataset(judge.case["group"], judge.case["data_set"], "official")
            official = planned_length(ours.document, dataset, recorded.builder())
            judge.same(f"{what}: length_official", official, outcome["length_official"])
    for plan in got.keys() - want.keys():
        judge.fail(f"{prefix}an outcome", f"{plan or got[plan][1].reason!r:.200} was not recorded")


def _judge_fault(recorded: RecordedData, judge: RecordJudge, outcomes: Outcomes) -> None:
    instead = judge.case["instead"]
    if instead not in INSTEAD:
        return judge.fail("instead", f"{instead!r} is not known, so it cannot be judged")
    judge.same("sum of weights", sum(probability for probability, _ in outcomes), Fraction(1))
    return INSTEAD[instead](judge, outcomes, recorded.row(judge.case))


def _skipped(judge: RecordJudge, outcomes: Outcomes) -> bool:
    """Whether a row is skipped always, with a reason; if so, that is judged right."""
    if any(outcome.plan is not None or not outcome.reason for _, outcome in outcomes):
        return False
    judge.holds("reported", True, outcomes[0][1].reason)
    return True


def _reported(judge: RecordJudge, outcomes: Outcomes, row: Mapping[str, Any]) -> None:
    if not _skipped(judge, outcomes):
        judge.fail("reported", f"the row is used: {_shown(outcomes)}")


def _captions(judge: RecordJudge, outcomes: Outcomes, row: Mapping[str, Any]) -> None:
    """The captions of a list are its items, all equally probable."""
    if not _skipped(judge, outcomes):
        texts = {item[1]: p for p, o in outcomes for item in o.plan or () if item[0] == "text"}
        items = json.loads(row["captions"])
        judge.same("captions", texts, {item: Fraction(items.count(item), len(items)) for item in items})


def _caption_text(judge: RecordJudge, outcomes: Outcomes, row: Mapping[str, Any]) -> None:
    """A caption that is a number is left out, or is its text."""
    if not _skipped(judge, outcomes):
        texts = {item[1] for _, o in outcomes for item in o.plan or () if item[0] == "text"}
        judge.same("captions", texts, {str(value) for value in json.loads(row["captions"]).values()})


def _whole_strings(judge: RecordJudge, outcomes: Outcomes, row: Mapping[str, Any]) -> None:
    """Each string is the only wording of its step: the outcomes are those recorded, with whole texts."""
    images = {tuple(item for item in recorded_plan(o) or () if item[0] != "text") for o in judge.case["outcomes"]}
    found = {tuple(item for item in o.plan or () if item[0] != "text") for _, o in outcomes}
    judge.same("images", found, images)
    texts = [item[1] for _, o in outcomes for item in o.plan or () if item[0] == "text"]
    judge.same("wordings", texts, list(row["instruction_list"]))


def _text_only(judge: RecordJudge, outcomes: Outcomes, row: Mapping[str, Any]) -> None:
    """A null image counts as no image at all."""
    texts = [turn["value"] for turn in row["conversations"] if turn["from"] in ("human", "gpt")]
    judge.same("texts", [[item[1] for item in o.plan or ()] for _, o in outcomes], [texts])


def _video_where_it_stands(judge: RecordJudge, outcomes: Outcomes, row: Mapping[str, Any]) -> None:
    """A later video mark becomes the frames, and the answers stay to be learnt."""
    if not _skipped(judge, outcomes):
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        for _, outcome in outcomes:
            plan = outcome.plan or ()
            judge.same("answers", [item[1] for item in plan if item[0] == "text" and item[3]], answers)
            judge.holds("frames", any(item[0] == "vit" for item in plan), "the video's frames are there")


def _as_recorded(judge: RecordJudge, outcomes: Outcomes, row: Mapping[str, Any]) -> None:
    """The recorded items, but only those that can be packed, and the length that they have."""
    want = {recorded_plan(o): Fraction(*o["weight"]) for o in judge.case["outcomes"]}
    judge.same("outcomes", {o.plan: p for p, o in outcomes}, want)
    by_plan = {recorded_plan(o): o for o in judge.case["outcomes"]}
    for _, outcome in outcomes:
        if outcome.sample is None or outcome.plan not in by_plan:
            continue
        written = by_plan[outcome.plan]
        left_out = [item for item in written["plan"] if item.get("picture", 0) is None]
        length = outcome.sample.und_len + outcome.sample.gen_len
        counted = written.get("packed", written["length"])
        if left_out:  # counted, but never there
            judge.holds("length", length < counted, f"{length}, without what is not there")
        else:
            judge.same("length", length, counted)


def _in_order(judge: RecordJudge, outcomes: Outcomes, row: Mapping[str, Any]) -> None:
    """Frames come in the order of their numbers, whichever they are; the records do not name them."""
    want: dict[SamplePlan | None, Fraction] = {}
    for recorded in judge.case["outcomes"]:
        plan = recorded_plan(recorded)
        want[plan] = want.get(plan, Fraction(0)) + Fraction(*recorded["weight"])
    got: dict[SamplePlan | None, Fraction] = {}
    for probability, outcome in outcomes:
        plan = without_pictures(outcome.plan)
        got[plan] = got.get(plan, Fraction(0)) + probability
        frames = [item[1] for item in outcome.plan or () if item[0] == "vit"]
        judge.same("order of frames", frames, sorted(frames))
    judge.same("outcomes", got, want)


# The judge of each way in which the records say that a fault would be put right.
INSTEAD: dict[str, Callable[[RecordJudge, Outcomes, Mapping[str, Any]], None]] = {
    "skipped with a reason": _reported,
    "read as a list of captions, or skipped with a reason": _captions,
    "skipped with a reason, or read as its text": _caption_text,
    "each string is the one wording of its step; published code draws one CHARACTER of it": _whole_strings,
    "read as text only": _text_only,
    "the mark is replaced where it stands, or the row skipped with a reason": _video_where_it_stands,
    "a length without the unused picture; using it, or leaving it out with a reason, are both fine": _as_recorded,
    "the surplus mark is dropped or the row skipped with a reason; the published packer stops with an error": (
        _as_recorded
    ),
    "frames in the order of their numbers; the published order is that in which the file system lists them, so the "
    "plans here name no pictures": _in_order,
}
