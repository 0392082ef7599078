"""The comparison of the five benchmarks of edits, which a chat model judges."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from bagel_mot.evaluation.base import Item, Score, Summary
from bagel_mot.evaluation.benchmarks import gedit, imgedit, intelligentbench, rise
from bagel_mot.evaluation.judges.base import JudgeRequest
from bagel_mot.evaluation.judges.texts import shipped_texts
from bagel_mot.verify.golden_eval.judge import MODES, Check, hash_of, judged
from bagel_mot.verify.golden_eval.judged import check_edits, check_requests, check_texts, check_values
from bagel_mot.verify.golden_eval.understanding import rows_of


def check_gedit(check: Check) -> None:
    """Two replies an item; the reading of each reply; a second try where one cannot be read."""
    with check.at("prompts"):
        check_edits(check)
    with check.at("replies"):
        for reply, wanted in check.recorded.take("expected", "reply_parsing", "table").items():
            found = gedit.read_reply(reply)
            check.same(
                repr(reply)[:80], "error" if wanted == "error" and gedit.lowest(found) is None else found, wanted
            )
    edited = check.recorded.data / "edited"
    for run in ("main", "odd"):
        for mode in MODES:
            with check.at("scores", run, mode):
                replies = check.recorded.take("answers", "judge", run)
                bench = check.benchmark(mode)
                told = {id: _in_turn(calls) for id, calls in replies.items()}
                scores, asked, summary = judged(bench, told, {id: edited / f"{id}.png" for id in told})
                _check_gedit_scores(check, run, mode, scores, asked, summary)
                if run == "main" and mode == "as_published":
                    with check.at("requests"):
                        check_requests(check, asked, has_texts=True)
                        _check_templates(check, "gedit")


def _check_templates(check: Check, benchmark: str) -> None:
    """The templates of a benchmark's judge, as they are shipped and in the record's own files."""
    for name, template in check.recorded.take("requests", "templates").items():
        check.same(f"template.{name}", hash_of(shipped_texts(benchmark)[name]), template["sha256"])
        text = (check.recorded.folder / template["file"]).read_text(encoding="utf-8")
        check.same(f"file.{name}", hash_of(text), template["sha256"])


def _in_turn(calls: Mapping[str, Sequence[str | None]]) -> list[str | None]:
    """The replies of two calls that are made in turn, try by try; the last one of a call is given again."""
    tries = range(max(map(len, calls.values())))
    return [calls[name][min(number, len(calls[name]) - 1)] for number in tries for name in ("SC", "PQ")]


def _check_gedit_scores(
    check: Check,
    run: str,
    mode: str,
    scores: Mapping[str, Score],
    asked: Mapping[str, Sequence[JudgeRequest]],
    summary: Summary,
) -> None:
    recorded = check.recorded.peek("expected", "runs", run)
    if "items" in recorded:
        items = check.recorded.take("expected", "runs", run, "items")
        check_values(check, scores, items, ("calls",))
        for id, wanted in items.items():
            check.same(f"{id}.calls", len(asked[id]), wanted["calls"])
    wanted = dict(check.recorded.take("expected", "runs", run, mode))
    if "random" in wanted:
        return check.same("random", sorted(summary.extra["would_draw_a_number"]), sorted(wanted["random"]))
    check.same("unparsable", summary.extra["left_out"], wanted.pop("unparsable", []))
    rows = rows_of(summary)
    for language, numbers in wanted.items():
        for name in ("G_SC", "G_PQ", "G_O"):
            check.close(f"{language}/{name}", rows[f"{language}/{name}"], numbers[name])
        for task, values in numbers["by_task"].items():
            for measure, value in zip(("SC", "PQ", "O"), values, strict=True):
                check.close(f"{language}/{task}/{measure}", rows[f"{language}/{task}/{measure}"], value)
    if mode == "fixed" and "fixed_items" in recorded:
        for id, values in check.recorded.take("expected", "runs", run, "fixed_items").items():
            for name, value in values.items():
                check.close(f"{id}.{name}", scores[id].values[name], value)
    return None


def check_imgedit(check: Check) -> None:
    """Lines of points in replies; both modes agree."""
    with check.at("prompts"):
        check_edits(check)
    for mode in MODES:
        with check.at("scores", "main", mode):
            replies = check.recorded.take("answers", "judge", "main")
            edited = check.recorded.data / "edited"
            bench = check.benchmark(mode, judge_texts=None)
            scores, asked, summary = judged(bench, replies, {id: edited / f"{id}.png" for id in replies})
            for id, value in check.recorded.take("expected", "runs", "main", "items").items():
                check.close(f"{id}.score", scores[id].values["score"], value, None if value is None else 2)
            check.numbers(rows_of(summary), check.recorded.take("expected", "runs", "main", "as_published"), 2)
            if mode == "as_published":
                with check.at("requests"):
                    check_requests(check, asked, has_texts=True)
                    check_texts(check, imgedit._TEXTS, "published_text_sha256")
    with check.at("replies"):
        rule = check.recorded.take("expected", "reading_rule")
        check.same(
            "reading_rule", [imgedit.read_reply(text) for text in ("a: 4", "a: 4.", "a: b: 4")], [4.0, None, None]
        )
        check.same("rule", "digits only" in rule, True)


def check_intelligentbench(check: Check) -> None:
    """Scores of 0, 1 and 2, and what else replies give."""
    with check.at("prompts"):
        check_edits(check)
    for mode in MODES:
        with check.at("scores", "main", mode):
            replies = check.recorded.take("answers", "judge", "main")
            bench = check.benchmark(mode)
            with TemporaryDirectory() as place:
                scores, asked, summary = judged(bench, replies, _drawn_images(bench.items(), Path(place)))
            for id, wanted in check.recorded.take("expected", "runs", "main", "items").items():
                check.same(f"{id}.score", scores[id].detail["score"], wanted["score"])
                check.same(f"{id}.calls", len(asked[id]), wanted["calls"])
                if mode == "as_published":
                    check.same(f"{id}.counted", scores[id].values["score"] is not None, wanted["counted"])
            wanted = check.recorded.take("expected", "runs", "main", mode)
            _check_intelligent_rows(check, summary, scores, wanted)
            if mode == "as_published":
                with check.at("requests"):
                    check_requests(check, asked, has_texts=False)
                    wanted = check.recorded.take("requests", "system_text")
                    check.same("system_text", list(intelligentbench.TEXTS.hashes.values()), [wanted["sha256"]])


def _drawn_images(items: Sequence[Item], folder: Path) -> dict[str, Path]:
    """The images to be judged, which are a column of the data, as files by item id."""
    found = {}
    for item in items:
        first: Any = item.images[0]
        found[item.id] = folder / f"{item.id}.png"
        drawn = replace(first, column="model_out_image", index=None)
        with Image.open(io.BytesIO(drawn.data())) as image:
            image.save(found[item.id])
    return found


def _check_intelligent_rows(
    check: Check, summary: Summary, scores: Mapping[str, Score], wanted: Mapping[str, Any]
) -> None:
    total = summary.rows["total"]
    check.close("percent", total.value, wanted["percent"])
    check.same("n", total.count, wanted["n"])
    if "total" in wanted:
        check.same("total", math.fsum(one.values["score"] or 0 for one in scores.values()), wanted["total"])
    check.same("unparsable", summary.extra["left_out"], wanted.get("unparsable", summary.extra["left_out"]))
    for letter, numbers in wanted["classes"].items():
        row = summary.rows[intelligentbench.CLASSES[letter]]
        check.close(f"{letter}.percent", row.value, numbers["percent"])
        check.same(f"{letter}.n", row.count, numbers["n"])


def check_kris(check: Check) -> None:
    """Up to four metrics an item; items that lack one."""
    with check.at("prompts"):
        check_edits(check)
    for mode in MODES:
        with check.at("scores", "main", mode):
            replies = check.recorded.take("answers", "judge", "main")
            edited = check.recorded.data / "edited"
            calls = ("consistency", "dual", "instruction", "quality")
            told = {id: [reply for call in calls for reply in own.get(call, ())] for id, own in replies.items()}
            images = {id: edited / f"{id}.png" for id in replies}
            scores, asked, summary = judged(check.benchmark(mode), told, images)
            for id, wanted in check.recorded.take("expected", "runs", "main", "items").items():
                for name, value in wanted.items():
                    if name == "kept":
                        check.same(f"{id}.kept", id not in summary.extra["incomplete"], value)
                    else:
                        check.same(f"{id}.{name}", scores[id].values[name], value)
            wanted = check.recorded.take("expected", "runs", "main", mode)
            flat = {"overall": wanted["overall"]}
            for part in ("groups", "meta", "types"):
                flat |= {
                    f"{name}/{key}": value for name, values in wanted[part].items() for key, value in values.items()
                }
            check.numbers(rows_of(summary), flat)
            if mode == "as_published":
                with check.at("requests"):
                    check_requests(check, asked, has_texts=True)
                    _check_templates(check, "kris")


def check_rise(check: Check) -> None:
    """Three dimensions an item; the formula without consistency; replies that cannot be read."""
    with check.at("prompts"):
        check_edits(check)
        published = check.recorded.take("prompts", "settings_of_published_plain_row")
        check.same("settings_of_published_plain_row", list(published), ["cfg_image_scale"])
    for run in ("main", "odd"):
        for mode in MODES:
            with check.at("scores", run, mode):
                _check_rise_run(check, run, mode)
        with check.at("scores", run, "upstream"):
            _check_rise_run(check, run, "upstream")


def _check_rise_run(check: Check, run: str, mode: str) -> None:
    replies = check.recorded.take("answers", "judge", run)
    edited = check.recorded.data / "edited"
    bench = check.benchmark(mode)
    told = {id: [reply for call in own.values() for reply in call] for id, own in replies.items()}
    scores, asked, summary = judged(bench, told, {item.id: edited / item.outputs[0] for item in bench.items()})
    recorded = check.recorded.take("expected", "runs", run, "items")
    mark = "as_published_risebench" if mode == "upstream" else mode
    wanted = dict(check.recorded.take("expected", "runs", run, mark))
    if mode == "as_published":
        check_values(check, scores, recorded)
    elif mode == "upstream":
        for id, value in wanted.pop("items_complete", {}).items():
            check.close(f"{id}.complete", scores[id].values["complete"], value)
    else:
        for id, values in wanted.pop("items").items():
            for name, value in (values or {"score": None}).items():
                check.close(f"{id}.{name}", scores[id].values[name], value)
        check.same("unparsable", summary.extra["left_out"], wanted.pop("unparsable", []))
    rows = rows_of(summary)
    for name, numbers in wanted.items():
        for key, value in numbers.items():
            if key == "n":
                check.same(f"{name}.n", summary.rows[f"{name}/score"].count, value)
            elif value is not None:
                found = rows[f"{name}/{key}"]
                check.close(f"{name}/{key}", found / 100 if key == "accuracy" and found is not None else found, value)
    if run == "main" and mode == "as_published":
        with check.at("requests"):
            check_requests(check, asked, has_texts=False)
            check_texts(check, rise.TEXTS.hashes, "published_text_sha256")
