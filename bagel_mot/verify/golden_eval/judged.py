"""The parts that comparisons of judged images share: prompts, requests of the judge, and the numbers of items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bagel_mot.evaluation.base import Item, Score
from bagel_mot.evaluation.judges.base import JudgeRequest
from bagel_mot.verify.golden_eval.judge import Check, settings_agree, sizes_of, structure_of

NOT_SHIPPED = "the judge's text may not be shipped, so the hash of the filled one is not compared"
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


def check_drawings(check: Check) -> None:
    """Prompts and names of images that are drawn from texts."""
    _check_settings(check)
    recorded = check.recorded.take("prompts", "items")
    items = check.benchmark().items()
    check.same("ids", sorted(item.id for item in items), sorted(recorded))
    for item in items:
        check.same(f"{item.id}.prompt", item.prompt, recorded[item.id]["prompt"])
        check.same(f"{item.id}.output", item.outputs, [recorded[item.id]["output"]])


def check_edits(check: Check) -> None:
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


def check_call(check: Check, request: JudgeRequest) -> None:
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


def check_requests(check: Check, asked: Mapping[str, Sequence[JudgeRequest]], *, has_texts: bool) -> None:
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
                check.unknown(f"{name}.texts", NOT_SHIPPED)
                found, wanted = _shape_of(found, wanted), _shape_of(wanted, wanted)
            check.same(name, _without_counts(found, wanted), wanted)
    check.same("requests", sorted(seen), sorted(recorded))
    check_call(check, next(requests[0] for requests in asked.values() if requests))


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


def check_texts(check: Check, hashes: Mapping[str, str], *keys: str) -> None:
    check.same(".".join(keys), hashes, check.recorded.take("requests", *keys))


def check_values(
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
