"""The comparison of benchmarks whose images a chat model judges: WISE in both sets, and the five of edits."""

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
from bagel_mot.evaluation.benchmarks import gedit, imgedit, intelligentbench, rise, wise, wise_verified
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeRequest
from bagel_mot.evaluation.judges.texts import shipped_texts
from bagel_mot.verify.golden_eval.judge import (
    MODES,
    Check,
    hash_of,
    judged,
    settings_agree,
    sizes_of,
    structure_of,
)
from bagel_mot.verify.golden_eval.understanding import rows_of

_NOT_SHIPPED = "the judge's text may not be shipped, so the hash of the filled one is not compared"
_CALLS = ("SC", "PQ", "consistency", "dual", "reasoning", "instruction", "quality")
_UNTOLD = ("n", "tries", "note", "timeout_s")


# ------------------------------------------------------------------------------------------------------------- prompts


def _check_settings(check: Check) -> None:
    plain, thinking = check.benchmark().items()[0], check.benchmark(think=True).items()[0]
    if check.recorded.peek("prompts", "settings") is not None:
        settings_agree(check, plain.settings, check.recorded.take("prompts", "settings"))
    if check.recorded.peek("prompts", "think") is not None:
        wanted = check.recorded.peek("prompts", "think")
        for name in ("temperature", "do_sample"):
            check.same(f"think.{name}", thinking.settings[name], check.recorded.take("prompts", "think", name))
        check.recorded.take("prompts", "think", "max_length")
        check.same("think.max_length", thinking.settings["max_think_tokens"] + 1, wanted["max_length"])


def _check_drawings(check: Check) -> None:
    """Prompts and names of images that are drawn from texts."""
    _check_settings(check)
    recorded = check.recorded.take("prompts", "items")
    items = check.benchmark().items()
    check.same("ids", sorted(item.id for item in items), sorted(recorded))
    for item in items:
        check.same(f"{item.id}.prompt", item.prompt, recorded[item.id]["prompt"])
        check.same(f"{item.id}.output", item.outputs, [recorded[item.id]["output"]])


def _check_edits(check: Check) -> None:
    """Prompts, inputs, sizes and names of edited images."""
    _check_settings(check)
    recorded = check.recorded.take("prompts", "items")
    items = check.benchmark().items()
    check.same("ids", [item.id for item in items], list(recorded))
    pattern = None
    if check.recorded.peek("prompts", "output") is not None:
        pattern = check.recorded.take("prompts", "output").split(" and ")[0]
    for item in items:
        wanted = recorded[item.id]
        check.same(f"{item.id}.prompt", item.prompt, wanted["prompt"])
        names = [
            image.as_posix()[-len(name) :] if isinstance(image, Path) else name
            for image, name in zip(item.images, wanted["pictures"], strict=True)
        ]
        check.same(f"{item.id}.pictures", names, wanted["pictures"])
        for name, sizes in sizes_of(item).items():
            check.same(f"{item.id}.{name}", sizes, wanted[name])
        for name, value in (("task", item.facts.get("task")), ("language", item.facts.get("language"))):
            if name in wanted:
                check.same(f"{item.id}.{name}", value, wanted[name])
        if pattern is not None:
            check.same(f"{item.id}.output", item.outputs, [_filled(pattern, item)])


def _filled(pattern: str, item: Item) -> str:
    values = {
        "<task_type>": item.facts.get("task"),
        "<language>": item.facts.get("language"),
        "<category>": item.facts.get("category"),
        "<key>": item.id,
        "<index>": item.id,
        "<type>": item.id.split("/")[0],
        "<id>": item.id.split("/")[-1],
    }
    for name, value in values.items():
        pattern = pattern.replace(name, str(value))
    return pattern


# ------------------------------------------------------------------------------------------------------------ requests


def _check_call(check: Check, request: JudgeRequest) -> None:
    """The fields of a request beside its messages."""
    settings = check.recorded.take("requests", "settings")
    got = {
        "model": request.model,
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "n": request.n,
        **request.extra,
    }
    for name, value in settings.items():
        if name in got and not (name == "n" and request.n is None and value == 1):
            check.same(f"settings.{name}", got[name], value)
        elif name not in _UNTOLD:
            check.fail(f"settings.{name}", "no request has it")


def _check_tries(check: Check, tries: int) -> None:
    wanted = check.recorded.peek("requests", "settings", "tries")
    if wanted is not None:
        check.same("settings.tries", str(wanted).startswith(str(tries)), True)


def _check_requests(check: Check, asked: Mapping[str, Sequence[JudgeRequest]], *, has_texts: bool) -> None:
    """Compares the first try of each call with the record; without the judge's texts, all but their hashes."""
    recorded = check.recorded.take("requests", "requests")
    seen = set()
    for id, requests in asked.items():
        calls = [request for request in requests if request.attempt == 0]
        names = [f"{id}/{call}" for call in _CALLS if f"{id}/{call}" in recorded] or [id]
        if "dual" not in str(names) and check.recorded.name == "kris":
            names = [f"{id}/{call}" for call in ("consistency", "instruction", "quality") if f"{id}/{call}" in recorded]
        check.same(f"{id}.calls", len(calls), len(names))
        for name, request in zip(names, calls, strict=False):
            seen.add(name)
            found, wanted = structure_of(request), recorded[name]
            if not has_texts:
                check.unknown(f"{name}.texts", _NOT_SHIPPED)
                found, wanted = _shape_of(found, wanted), _shape_of(wanted, wanted)
            check.same(name, _without_counts(found, wanted), wanted)
    check.same("requests", sorted(seen), sorted(recorded))
    _check_call(check, next(requests[0] for requests in asked.values() if requests))


def _without_counts(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without the numbers of characters that are not recorded."""
    kept = []
    for message, other in zip(found, wanted, strict=False):
        parts = [
            {key: value for key, value in part.items() if key in theirs or key != "chars"}
            for part, theirs in zip(message["content"], other["content"], strict=False)
        ]
        kept.append({**message, "content": parts + message["content"][len(parts) :]})
    return kept + found[len(kept) :]


def _shape_of(messages: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without the texts of which only the hash is recorded."""
    shapes = []
    for message, other in zip(messages, recorded, strict=True):
        pairs = zip(message["content"], other["content"], strict=True)
        content = [
            {"text": "long"} if "text_sha256" in told and "picture" not in part else part for part, told in pairs
        ]
        shapes.append({"role": message["role"], "content": content})
    return shapes


def _check_texts(check: Check, hashes: Mapping[str, str], *keys: str) -> None:
    check.same(".".join(keys), hashes, check.recorded.take("requests", *keys))


# ---------------------------------------------------------------------------------------------------------------- WISE


def _check_wise_requests(check: Check, asked: Mapping[str, Sequence[JudgeRequest]], hashes: Mapping[str, str]) -> None:
    messages = check.recorded.take("requests", "messages")
    check.same("system", hashes["system"], messages[0]["text_sha256"])
    check.same("user", hashes["user"], check.recorded.take("requests", "user_template_sha256"))
    check.same("contents", [len(message["content"]) for message in messages], [1, 2])
    recorded = check.recorded.take("requests", "items")
    check.same("ids", sorted(asked), sorted(recorded))
    for id, wanted in recorded.items():
        request = asked[id][0]
        check.same(f"{id}.roles", [one.role for one in request.messages], [one["role"] for one in messages])
        text, image = request.messages[1].content
        check.same(f"{id}.text", isinstance(text, str) and len(wanted["user_text_sha256"]) == 64, True)
        check.unknown(f"{id}.user_text_sha256", _NOT_SHIPPED)
        if "picture" in wanted and isinstance(image, JudgeImage):
            check.same(f"{id}.picture", _facts_of(image), wanted["picture"])
    _check_call(check, asked[next(iter(recorded))][0])


def _facts_of(image: JudgeImage) -> dict[str, Any]:
    import hashlib

    with Image.open(io.BytesIO(image.data)) as opened:
        facts = {"mime": image.mime, "format": opened.format, "size": list(opened.size)}
    return {**facts, "sha256": hashlib.sha256(image.data).hexdigest()}


def _values(
    check: Check, scores: Mapping[str, Score], recorded: Mapping[str, Any], skipped: Sequence[str] = ()
) -> None:
    """Compares the numbers of each item."""
    for id, wanted in recorded.items():
        for name, value in wanted.items():
            if name in skipped:
                continue
            found = scores[id].values[name] if name in scores[id].values else scores[id].detail[name]
            if isinstance(value, float) and isinstance(found, int | float):
                check.close(f"{id}.{name}", found, value)
            else:
                check.same(f"{id}.{name}", found, value)


def check_wise(check: Check) -> None:
    """Replies on three scales; replies that cannot be read lose a file as published."""
    with check.at("prompts"):
        _check_drawings(check)
    for run in ("main", "odd"):
        for mode in MODES:
            with check.at("scores", run, mode):
                _check_wise_run(check, run, mode, wise.Wise.text_hashes)


def check_wise_verified(check: Check) -> None:
    """Right or wrong in up to three tries."""
    with check.at("prompts"):
        _check_drawings(check)
    for run in ("main", "odd"):
        for mode in MODES:
            with check.at("scores", run, mode):
                _check_wise_run(check, run, mode, wise_verified.WiseVerified.text_hashes)


def _check_wise_run(check: Check, run: str, mode: str, hashes: Mapping[str, str]) -> None:
    replies = check.recorded.take("answers", "judge", run)
    bench = check.benchmark(mode, judge_texts=None)
    where = _images_of(check)
    scores, asked, summary = judged(bench, replies, {item.id: where / item.outputs[0] for item in bench.items()})
    _values(check, scores, check.recorded.take("expected", "runs", run, "items"))
    if run == "main" and mode == "as_published":
        with check.at("requests"):
            _check_wise_requests(check, asked, hashes)
    recorded = check.recorded.peek("expected", "runs", run)
    wanted = dict(check.recorded.take("expected", "runs", run, mode) if mode in recorded else recorded["as_published"])
    if "fails" in wanted:
        for name, value in wanted.items():
            check.same(name, summary.extra[name], value)
        return
    check.same("unparsable", summary.extra.get("unparsable", []), sorted(wanted.pop("unparsable", [])))
    rounded = check.recorded.name == "wise_verified" and mode in recorded and mode == "as_published"
    printed = rounded or (check.recorded.name == "wise_verified" and mode not in recorded)
    check.numbers(rows_of(summary), wanted, 2 if printed else None)
    if "exact" in recorded:
        check.numbers(rows_of(summary), check.recorded.take("expected", "runs", run, "exact"))
    if "as_published_wise_repository" in recorded:
        other = check.benchmark("fixed", judge_texts=None).aggregate(scores)
        printed_rows = check.recorded.take("expected", "runs", run, "as_published_wise_repository")
        check.numbers(rows_of(other), printed_rows, 2)


def _images_of(check: Check) -> Path:
    """The folder of the images to be judged; the newer WISE is judged on those of the older one."""
    own = check.recorded.data / "images"
    return own if own.is_dir() else check.recorded.data / "edited"


# --------------------------------------------------------------------------------------------------------------- edits


def check_gedit(check: Check) -> None:
    """Two replies an item; the reading of each reply; a second try where one cannot be read."""
    with check.at("prompts"):
        _check_edits(check)
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
                        _check_requests(check, asked, has_texts=True)
                        for name in ("SC", "PQ"):
                            template = check.recorded.take("requests", "templates", name)
                            check.same(f"template.{name}", hash_of(shipped_texts("gedit")[name]), template["sha256"])
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
        _values(check, scores, items, ("calls",))
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
        _check_edits(check)
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
                    _check_requests(check, asked, has_texts=True)
                    _check_texts(check, imgedit._TEXTS, "published_text_sha256")
    with check.at("replies"):
        rule = check.recorded.take("expected", "reading_rule")
        check.same(
            "reading_rule", [imgedit.read_reply(text) for text in ("a: 4", "a: 4.", "a: b: 4")], [4.0, None, None]
        )
        check.same("rule", "digits only" in rule, True)


def check_intelligentbench(check: Check) -> None:
    """Scores of 0, 1 and 2, and what else replies give."""
    with check.at("prompts"):
        _check_edits(check)
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
                    _check_requests(check, asked, has_texts=False)
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
        _check_edits(check)
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
                    _check_requests(check, asked, has_texts=True)
                    for name, template in check.recorded.take("requests", "templates").items():
                        check.same(f"template.{name}", hash_of(shipped_texts("kris")[name]), template["sha256"])
                        text = (check.recorded.folder / template["file"]).read_text(encoding="utf-8")
                        check.same(f"file.{name}", hash_of(text), template["sha256"])


def check_rise(check: Check) -> None:
    """Three dimensions an item; the formula without consistency; replies that cannot be read."""
    with check.at("prompts"):
        _check_edits(check)
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
        _values(check, scores, recorded)
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
            _check_requests(check, asked, has_texts=False)
            _check_texts(check, rise.TEXTS.hashes, "published_text_sha256")
