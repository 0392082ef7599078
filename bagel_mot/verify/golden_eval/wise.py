"""The comparison of WISE in both sets: images that are drawn from texts and judged by a chat model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.evaluation.benchmarks import wise, wise_verified
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeRequest
from bagel_mot.verify.golden_eval.judge import MODES, Check, judged
from bagel_mot.verify.golden_eval.judged import NOT_SHIPPED, check_call, check_drawings, check_values
from bagel_mot.verify.golden_eval.understanding import rows_of


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
        check.unknown(f"{id}.user_text_sha256", NOT_SHIPPED)
        if "picture" in wanted and isinstance(image, JudgeImage):
            check.same(f"{id}.picture", _facts_of(image), wanted["picture"])
    check_call(check, asked[next(iter(recorded))][0])


def _facts_of(image: JudgeImage) -> dict[str, Any]:
    with Image.open(io.BytesIO(image.data)) as opened:
        facts = {"mime": image.mime, "format": opened.format, "size": list(opened.size)}
    return {**facts, "sha256": hashlib.sha256(image.data).hexdigest()}


def check_wise(check: Check) -> None:
    """Replies on three scales; replies that cannot be read lose a file as published."""
    with check.at("prompts"):
        check_drawings(check)
    for run in ("main", "odd"):
        for mode in MODES:
            with check.at("scores", run, mode):
                _check_wise_run(check, run, mode, wise.Wise.text_hashes)


def check_wise_verified(check: Check) -> None:
    """Right or wrong in up to three tries."""
    with check.at("prompts"):
        check_drawings(check)
    for run in ("main", "odd"):
        for mode in MODES:
            with check.at("scores", run, mode):
                _check_wise_run(check, run, mode, wise_verified.WiseVerified.text_hashes)


def _check_wise_run(check: Check, run: str, mode: str, hashes: Mapping[str, str]) -> None:
    replies = check.recorded.take("answers", "judge", run)
    bench = check.benchmark(mode, judge_texts=None)
    where = _images_of(check)
    scores, asked, summary = judged(bench, replies, {item.id: where / item.outputs[0] for item in bench.items()})
    check_values(check, scores, check.recorded.take("expected", "runs", run, "items"))
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
