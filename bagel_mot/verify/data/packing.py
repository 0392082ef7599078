"""The kinds `groups`, `run` and `plan`: which group comes next, and how samples become packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bagel_mot.config import parse
from bagel_mot.data.documents import IndexedSample
from bagel_mot.data.feed import GroupSample
from bagel_mot.data.mixing import drawn_group
from bagel_mot.data.packer import PublishedPackConfig, PublishedPacker
from bagel_mot.errors import DataError
from bagel_mot.sequence import TextSegment
from bagel_mot.verify.data.judge import RecordJudge
from bagel_mot.verify.data.plans import recorded_sample
from bagel_mot.verify.data.recorded import FAULT, QUIRK, RecordedData

NOTHING_LOST = "no sample lost, no pack longer than max_num_tokens, no empty pack"
_MOST_PACKS = 10  # times those recorded, until all samples are taken where a fault is judged


class RecordedFeed:
    """Samples of recorded streams, in order; the groups come as they were drawn.

    Attributes:
        rejected: the names of the samples that were left out.
    """

    def __init__(self, case: Mapping[str, Any], samples: Mapping[str, Sequence[IndexedSample]], again: bool) -> None:
        """Opens streams at their beginning.

        Args:
            case: the record.
            samples: the samples of each group.
            again: whether streams and draws begin anew where they end; else that is an error.
        """
        self.names: list[str] = case["groups"]
        self.mandatory = [number for number, always in enumerate(case["mandatory"]) if always]
        self._samples, self._draws, self._again = samples, case["draws"], again
        self._drawn = 0
        self.taken = [0] * len(self.names)
        self.rejected: list[str] = []

    def draw(self) -> int:
        self._drawn += 1
        return self.names.index(self._of(self._draws, self._drawn - 1, "draws"))

    def take(self, group: int) -> GroupSample:
        self.taken[group] += 1
        return GroupSample(group, self._of(self._samples[self.names[group]], self.taken[group] - 1, self.names[group]))

    def _of(self, items: Sequence[Any], number: int, what: str) -> Any:
        if number >= len(items) and not (self._again and items):
            raise DataError(f"of {what} more than the {len(items)} that were recorded are taken")
        item = items[number % len(items)]
        # A sample that comes again is another one.
        return IndexedSample(item.segments, 0, number, length=item.length) if isinstance(item, IndexedSample) else item

    def reject(self, item: GroupSample, reason: str, sentence: str) -> None:
        self.rejected.append(self.name(item))

    def name(self, item: GroupSample) -> str:
        """The recorded name of a sample, as "group#k"."""
        return f"{self.names[item.group]}#{item.sample.index}"


def judge_groups(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges the group that each number draws."""
    _check_draws(judge, list(judge.case["weights"]), list(judge.case["weights"].values()))


def _check_draws(judge: RecordJudge, names: Sequence[str], weights: Sequence[float]) -> None:
    drawn = [names[drawn_group(weights, number)] for number in judge.case["numbers"]]
    judge.same("draws", drawn, judge.case["draws"])


def judge_run(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges packs of the samples of rows."""
    case = judge.case
    samples = {name: [_sample(recorded, judge, *one) for one in stream] for name, stream in case["streams"].items()}
    _judge_packs(judge, samples)


def _sample(recorded: RecordedData, judge: RecordJudge, row: str, outcome: int, length: int) -> IndexedSample:
    sample = recorded_sample(recorded, row, outcome, judge.case["dropout"])
    # The published length may count images that are never packed, a fault of that row.
    real = recorded.by_name(row)["outcomes"][outcome].get("packed")
    counted = recorded.by_name(row)["outcomes"][outcome]["length"]
    if length != counted or sample.length != (counted if real is None else real):
        judge.fail(f"length of outcome {outcome} of {row}", f"{sample.length} instead of {length}")
    return sample


def judge_plan(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges packs of texts of given lengths."""
    samples = {name: [_text(length) for length in stream] for name, stream in judge.case["streams"].items()}
    _judge_packs(judge, samples)


def _text(length: int) -> IndexedSample:
    return IndexedSample((TextSegment((0,) * length),), length=length)


def _judge_packs(judge: RecordJudge, samples: Mapping[str, Sequence[IndexedSample]]) -> None:
    case = judge.case
    if {len(case[key]) for key in ("groups", "weights", "mandatory", "streams")} != {len(samples)}:
        return judge.fail("groups", "groups, weights, mandatory and streams are not of one length")
    _check_draws(judge, case["groups"], case["weights"])
    config = parse(PublishedPackConfig, case["settings"], case["name"], DataError)
    if judge.mark == FAULT:
        return _judge_fault(judge, config, samples)
    feed, packer, events = RecordedFeed(case, samples, again=False), PublishedPacker(config), []
    packer.note = lambda source, item, what: events.append([source, feed.name(item) if item else "", what])
    quirk = judge.quirk if judge.mark == QUIRK else ""
    try:
        packs = [packer.next_rows(feed)[0] for _ in case["packs"]]
    except DataError as error:
        return judge.same("packs", str(error), case["packs"], may_differ=quirk)
    lengths = [sum(item.sample.und_len + item.sample.gen_len for item in pack) for pack in packs]
    found = {
        "packs": [[feed.name(item) for item in pack] for pack in packs],
        "lengths": lengths,
        "waiting": [feed.name(item) for item in [*packer.deferred, *packer.waiting]],
        "too_long": feed.rejected,
        "lost": [],
        "events": events,
        "padding": [config.max_num_tokens - length for length in lengths],
    }
    for quantity, got in found.items():
        if quantity != "padding" or quantity in case:
            judge.same(quantity, got, case[quantity], may_differ=quirk)
    return None


def _judge_fault(
    judge: RecordJudge, config: PublishedPackConfig, samples: Mapping[str, Sequence[IndexedSample]]
) -> None:
    """Judges that nothing is lost: all samples of the streams are packed, wait, or are reported as too long."""
    case = judge.case
    feed, packer = RecordedFeed(case, samples, again=True), PublishedPacker(config)
    packs: list[list[GroupSample]] = []
    drawn = [
        number for number, name in enumerate(case["groups"]) if case["weights"][number] or case["mandatory"][number]
    ]
    while len(packs) < _MOST_PACKS * len(case["packs"]) and any(
        feed.taken[number] < len(samples[case["groups"][number]]) for number in drawn
    ):
        packs += packer.next_rows(feed)
    judge.holds(
        "taken", all(feed.taken[n] >= len(samples[case["groups"][n]]) for n in drawn), f"{feed.taken} are taken"
    )
    lengths = [sum(item.sample.und_len + item.sample.gen_len for item in pack) for pack in packs]
    judge.same("packs longer than max_num_tokens", [n for n in lengths if n > config.max_num_tokens], [])
    judge.same("packs without a sample", [number for number, pack in enumerate(packs) if not pack], [])
    packed = [feed.name(item) for pack in packs for item in pack]
    waiting = [feed.name(item) for item in [*packer.deferred, *packer.waiting]]
    every = [f"{name}#{number}" for name, taken in zip(feed.names, feed.taken, strict=True) for number in range(taken)]
    judge.same("samples packed, waiting or reported", sorted([*packed, *waiting, *feed.rejected]), sorted(every))
    limit = min(config.max_num_tokens, config.max_num_tokens_per_sample)
    fits = {
        name
        for name in feed.rejected
        if samples[(g := name.split("#"))[0]][int(g[1]) % len(samples[g[0]])].length <= limit
    }
    judge.same("reported, though they fit", fits, set())
    # The record itself must be of the fault that it names: samples are lost, or packs too long or empty.
    lost, empty = set(case["lost"]), [number for number, pack in enumerate(case["packs"]) if not pack]
    over = [number for number, length in enumerate(case["lengths"]) if length > config.max_num_tokens]
    judge.same("over_max", over, case.get("over_max", []))
    judge.same("empty", empty, case.get("empty", []))
    judge.holds(
        "instead", case["instead"] == NOTHING_LOST and bool(lost or over or empty), f"{case['instead']!r} is judged"
    )
    there = [[name for name in pack if name not in set(every)] for pack in case["packs"]]
    judge.same("recorded samples", [name for pack in there for name in pack], [])
    for quantity in ("waiting", "too_long", "lost"):
        judge.same(f"recorded {quantity}", set(case[quantity]) <= set(every), True)
    _check_lengths(judge, samples)


def _check_lengths(judge: RecordJudge, samples: Mapping[str, Sequence[IndexedSample]]) -> None:
    """Checks that the recorded lengths are those of the recorded packs."""
    found = []
    for pack in judge.case["packs"]:
        parts = [name.split("#") for name in pack]
        made = [samples[group][int(number)] for group, number in parts]
        found.append(sum(sample.und_len + sample.gen_len for sample in made))
    judge.same("lengths", found, judge.case["lengths"])
    if "padding" in judge.case:
        most = judge.case["settings"]["max_num_tokens"]
        judge.same("padding", [most - length for length in found], judge.case["padding"])
