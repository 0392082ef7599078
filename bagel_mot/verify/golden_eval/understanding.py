"""The comparison of benchmarks whose items are questions about images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import ItemResult, Score, Summary
from bagel_mot.evaluation.benchmarks import mmvet
from bagel_mot.evaluation.data import read_xlsx
from bagel_mot.evaluation.judges.base import JudgeRequest, Judges
from bagel_mot.evaluation.judges.texts import shipped_texts
from bagel_mot.verify.golden_eval.judge import MODES, Check, hash_of, value_of

_MMBENCH = {
    "mmbench_dev_20230712": "dev-en",
    "mmbench_dev_cn_20231003": "dev-cn",
    "mmbench_test_en_20231003": "test-en",
}
_HEAD = "HEAD\n"  # in place of the head of MM-Vet's judge, which may not be shipped
_NO_HEAD = "the head of the judge's text may not be shipped, so that the hash of the whole is not compared"
_PLAIN, _THINKING = "plain", "cot"


def rows_of(summary: Summary) -> dict[str, float | None]:
    return {name: row.value for name, row in summary.rows.items()}


def compare_items(check: Check, scores: Mapping[str, Score], recorded: Mapping[str, Any], mode: str) -> None:
    """Compares each fact of each item; where one is recorded for each mode, that of the mode."""
    ends = ("_fixed", "_as_published")
    for id, wanted in recorded.items():
        for name in dict.fromkeys(key.removesuffix(ends[0]).removesuffix(ends[1]) for key in wanted):
            own = f"{name}{ends[mode != 'fixed']}"
            if own in wanted or name in wanted:
                check.same(f"{id}.{name}", value_of(scores[id], name), wanted.get(own, wanted.get(name)))


def check_mme(check: Check) -> None:
    """Cleaning, labels and sums; lines with a tab; an image that is missing."""
    with check.at("prompts"):
        check.questions(check.benchmark())
        end = check.recorded.take("prompts", "joined_by") + check.recorded.take("prompts", "suffix")
        check.same("suffix", check.benchmark().items()[0].prompt[-len(end) :], end)
    main = check.recorded.peek("expected", "runs", "main", "items")
    for mode in MODES:
        for run in ("main", "odd"):
            with check.at("scores", run, mode):
                answers = check.recorded.take("answers", "runs", run)
                scores, _, summary = check.answered(check.benchmark(mode), answers)
                items = {**main, **check.recorded.take("expected", "runs", run, "items")}
                if mode == "fixed":  # which reads a tab as a blank: what it cleans is not recorded
                    items = {id: _without(wanted, "cleaned", "\t") for id, wanted in items.items()}
                compare_items(check, scores, items, mode)
                check.numbers(rows_of(summary), check.recorded.take("expected", "runs", run, mode))
    with check.at("scores", "missing_picture"):
        _check_missing(check)


def _without(wanted: Mapping[str, Any], name: str, sign: str) -> dict[str, Any]:
    return {key: value for key, value in wanted.items() if key != name or sign not in value}


def _check_missing(check: Check) -> None:
    """An image is missing: as published the rest is scored, here the set is refused."""
    absent = check.recorded.take("expected", "runs", "missing_picture", "absent")
    bench, answers = check.benchmark(), check.recorded.peek("answers", "runs", "main")
    there = [item for item in bench.items() if f"{item.facts['task']}/{item.facts['image']}" not in absent]
    scores = {item.id: bench.score(item, ItemResult((answers[item.id],)), Judges()) for item in there}
    check.same("asked", len(scores), check.recorded.take("expected", "runs", "missing_picture", "asked"))
    published = check.recorded.take("expected", "runs", "missing_picture", "as_published")
    check.numbers(rows_of(bench.aggregate(scores)), published)
    said = check.recorded.take("expected", "runs", "missing_picture", "fixed")
    with TemporaryDirectory() as place:
        copy = Path(place) / "data"
        for path in check.recorded.data.rglob("*"):
            if path.is_file() and not path.as_posix().endswith(tuple(absent)):
                target = copy / path.relative_to(check.recorded.data)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.absolute())
        try:
            check.benchmark(data=copy).items()
        except DataError:
            check.same("fixed", "refuse to score an incomplete set", said)
        else:
            check.fail("fixed", f"a set without {', '.join(absent)} was read")


def check_mmbench(check: Check) -> None:
    """Letters, options that are read as missing, circular scores, and the file for the server."""
    for run, variant in _MMBENCH.items():
        with check.at("prompts", run):
            bench = check.benchmark(variant=variant)
            check.questions(bench, run)
            language = "cn" if "直接回答" in bench.items()[0].prompt else "en"
            check.same("language", language, check.recorded.take("prompts", run, "language"))
        for mode in MODES:
            with check.at("scores", run, mode):
                _check_mmbench_run(check, run, variant, mode)
        with check.at("files", run):
            _check_results_file(check, run, variant)


def _check_mmbench_run(check: Check, run: str, variant: str, mode: str) -> None:
    bench = check.benchmark(mode, variant=variant)
    scores, _, summary = check.answered(bench, check.recorded.take("answers", "runs", run))
    recorded = check.recorded.take("expected", "runs", run, "items")
    options = {item.id: list(item.facts["options"]) for item in bench.items()}
    for id, wanted in recorded.items():
        check.same(f"{id}.options_seen", options[id], wanted["options_seen"])
    empty = {item.id for item in bench.items() if not check.recorded.peek("answers", "runs", run)[item.id].strip()}
    facts = {
        id: {
            name: value
            for name, value in wanted.items()
            if name != "options_seen" and not (mode == "fixed" and id in empty and name == "parsed")
        }
        for id, wanted in recorded.items()
    }
    compare_items(check, scores, facts, mode)
    name = "fixed_parse" if mode == "fixed" else "as_published_parse"
    if check.recorded.peek("expected", "runs", run, "local_score_derived") is None:
        return check.same("circular", summary.rows["circular"].value, None)
    derived = check.recorded.take("expected", "runs", run, "local_score_derived", name)
    wanted = {key: value for key, value in derived.items() if not isinstance(value, dict) and key != "groups"}
    categories = {f"circular/{key}": value for key, value in derived["circular_by_l2_category"].items()}
    check.same("groups", summary.rows["circular"].count, derived["groups"])
    return check.numbers(rows_of(summary), {**wanted, **categories})


def _check_results_file(check: Check, run: str, variant: str) -> None:
    """The file for the server, and what VLMEvalKit makes of its predictions, which is for comparison."""
    bench = check.benchmark(variant=variant)
    answers = check.recorded.peek("answers", "runs", run)
    scores, _, _ = check.answered(bench, answers)
    with TemporaryDirectory() as place:
        results = {id: ItemResult((answer,)) for id, answer in answers.items()}
        [path] = bench.write_submission(Path(place), results, scores)
        rows = read_xlsx(path)
    check.same("columns", list(rows[0]), check.recorded.take("expected", "runs", run, "columns_of_results_xlsx"))
    recorded = check.recorded.peek("expected", "runs", run, "items")
    for row in rows:
        check.same(f"{row['index']}.prediction", row["prediction"], recorded[str(row["index"])]["parsed"])
    if check.recorded.peek("expected", "runs", run, "vlmevalkit_exact_matching") is not None:
        other = check.recorded.take("expected", "runs", run, "vlmevalkit_exact_matching")
        hits = other["hits"]
        check.close("vlmevalkit.circular", sum(hits.values()) / len(hits), other["circular"])
        groups = [item.id for item in bench.items() if item.id in hits]
        check.same("vlmevalkit.questions", sorted(groups), sorted(hits))


def check_mmmu(check: Check) -> None:
    """Letters and open answers, plain and thinking."""
    for name in (_PLAIN, _THINKING):
        with check.at("prompts", name):
            check.questions(check.benchmark(think=name == _THINKING), name)
    for mode in MODES:
        for run, think in (("main", False), ("cot", True)):
            with check.at("scores", run, mode):
                answers = check.recorded.take("answers", "runs", run)
                scores, _, summary = check.answered(check.benchmark(mode, think=think), answers)
                recorded = check.recorded.take("expected", "runs", run, "items")
                compare_items(check, scores, recorded, mode)
                # Nothing published scores answers with thinking: both modes agree.
                wanted = check.recorded.take("expected", "runs", run, "fixed" if think else mode)
                for row, numbers in wanted.items():
                    check.same(f"{row}.n", summary.rows[row].count, numbers["n"])
                    check.close(f"{row}.accuracy", summary.rows[row].value, numbers["accuracy"], digits=3)


def check_mmvet(check: Check) -> None:
    """Scores by a judge that is asked anew, colder at first, until its reply is a number."""
    with check.at("prompts"):
        check.questions(check.benchmark())
    for mode in MODES:
        with check.at("scores", "main", mode):
            bench = check.benchmark(mode, arguments={"head": _HEAD})
            answers = check.recorded.take("answers", "runs", "main")
            replies = check.recorded.take("answers", "judge", "main")
            scores, asked, summary = check.answered(bench, answers, replies)
            recorded = check.recorded.take("expected", "runs", "main", "items")
            fixed = check.recorded.take("expected", "runs", "main", "fixed", "items")
            for id, wanted in recorded.items():
                check.same(f"{id}.temperatures", [one.temperature for one in asked[id]], wanted["temperatures"])
                check.same(f"{id}.calls", len(asked[id]), wanted["calls"])
                value = fixed[id] if mode == "fixed" else wanted["score"]
                check.close(f"{id}.score", scores[id].values["score"], value)
            _check_abilities(check, summary, mode)
            if mode == "as_published":
                with check.at("requests"):
                    _check_mmvet_requests(check, asked)
                with check.at("files"), TemporaryDirectory() as place:
                    results = {id: ItemResult((answer,)) for id, answer in answers.items()}
                    [path] = bench.write_submission(Path(place), results, scores)
                    wanted = check.recorded.take("expected", "runs", "main", "results_file")
                    check.same("results_file", json.loads(path.read_text(encoding="utf-8")), wanted)


def _check_abilities(check: Check, summary: Summary, mode: str) -> None:
    abilities = check.recorded.take("expected", "runs", "main", mode, "by_ability")
    combinations = check.recorded.take("expected", "runs", "main", mode, "by_combination")
    for name, numbers in {**combinations, **abilities}.items():
        row = summary.rows[name if name in abilities else f"combination/{name}"]
        check.same(f"{name}.n", row.count, numbers["n"])
        check.close(f"{name}.score", row.value, numbers["score"])
        if name in combinations and name in abilities:
            check.same(f"{name}.both", combinations[name], abilities[name])


def _check_mmvet_requests(check: Check, asked: Mapping[str, Sequence[JudgeRequest]]) -> None:
    check.same("head", mmvet.HEAD_SHA256, check.recorded.take("requests", "head_sha256"))
    check.unknown("head_chars", f"{_NO_HEAD} ({check.recorded.take('requests', 'head_chars')} characters)")
    settings = check.recorded.take("requests", "settings")
    check.same("settings.tries", max(map(len, asked.values())), settings["tries"])
    check.same("settings.temperature", settings["temperature"].startswith("0.0, plus 0.5"), True)
    check.same("settings.model", asked["0"][0].model in settings["model"], True)
    recorded = check.recorded.take("requests", "items")
    check.same("ids", sorted(asked), sorted(recorded))
    for id, [wanted] in recorded.items():
        for request in asked[id]:
            [message] = request.messages
            check.same(f"{id}.text", message.content, [f"{_HEAD}{wanted['last_row']}"])
            check.same(f"{id}.role", message.role, wanted["role"])
            check.same(f"{id}.max_tokens", request.max_tokens, wanted["max_tokens"])
        check.unknown(f"{id}.text_sha256", _NO_HEAD)


def check_mathvista(check: Check) -> None:
    """Extraction by a judge where it is needed, and by a rule; answers made like the wanted one."""
    for name in (_PLAIN, _THINKING):
        with check.at("prompts", name):
            check.questions(check.benchmark(think=name == _THINKING), name)
    for run, variant in (("main", "testmini"), ("quick", "testmini-quick")):
        for mode in MODES:
            with check.at("scores", run, mode):
                _check_mathvista_run(check, run, variant, mode)


def _check_mathvista_run(check: Check, run: str, variant: str, mode: str) -> None:
    answers = check.recorded.take("answers", "runs", run)
    replies = check.recorded.take("answers", "judge", run) if run == "main" else {}
    scores, asked, summary = check.answered(check.benchmark(mode, variant=variant), answers, replies)
    for id, wanted in check.recorded.take("expected", "runs", run, "items").items():
        detail = scores[id].detail
        check.same(f"{id}.extraction", detail["extraction"], wanted["extraction"])
        right = wanted["right_fixed"] if mode == "fixed" and "right_fixed" in wanted else wanted["right"]
        check.same(f"{id}.right", scores[id].values["right"], right)
        check.same(f"{id}.judge_calls", [detail["judge_calls"], len(asked[id])], [wanted.get("judge_calls", 0)] * 2)
        if mode != "fixed" or wanted["extraction"]:  # fixed predicts nothing from an empty extraction
            check.same(f"{id}.prediction", detail["prediction"], wanted["prediction"])
    mark = mode if check.recorded.peek("expected", "runs", run, mode) is not None else "as_published"
    for group, table in check.recorded.take("expected", "runs", run, mark).items():
        for name, (percent, right, count) in ({"": table} if group == "average" else table).items():
            row = summary.rows[f"{group}/{name}" if name else group]
            check.close(f"{group}/{name}", row.value, percent, digits=2)
            check.same(f"{group}/{name}.n", row.count, count)
            check.same(f"{group}/{name}.right", round((row.value or 0) * row.count / 100), right)
    if run == "main" and mode == "as_published":
        with check.at("requests"):
            _check_mathvista_requests(check, asked)


def _check_mathvista_requests(check: Check, asked: Mapping[str, Sequence[JudgeRequest]]) -> None:
    head = shipped_texts("mathvista")["head"]
    check.same("head", hash_of(head), check.recorded.take("requests", "head_sha256"))
    file = check.recorded.folder / check.recorded.take("requests", "head_file")
    check.same("head_file", file.read_bytes().decode("utf-8"), head)
    settings = check.recorded.take("requests", "settings")
    recorded = check.recorded.take("requests", "items")
    check.same("ids", sorted(id for id, requests in asked.items() if requests), sorted(recorded))
    check.same("settings.tries", max(map(len, asked.values())), settings["tries"])
    for id, wanted in recorded.items():
        check.same(f"{id}.calls", len(asked[id]), wanted["calls"])
        for request in asked[id]:
            [message] = request.messages
            texts = [part for part in message.content if isinstance(part, str)]
            check.same(f"{id}.text", [hash_of(text) for text in texts], [wanted["text_sha256"]])
            check.same(f"{id}.pictures", len(message.content) - len(texts), wanted["pictures"])
            check.same(f"{id}.role", message.role, settings["role"])
            for name in ("model", "temperature", "max_tokens", "n"):
                check.same(f"{id}.{name}", getattr(request, name), settings[name])


def check_mmvp(check: Check) -> None:
    """Letters and pairs; answers that are empty."""
    with check.at("prompts"):
        check.questions(check.benchmark())
    for mode in MODES:
        with check.at("scores", "main", mode):
            answers = check.recorded.take("answers", "runs", "main")
            scores, _, summary = check.answered(check.benchmark(mode), answers)
            compare_items(check, scores, check.recorded.take("expected", "runs", "main", "items"), mode)
            check.numbers(rows_of(summary), check.recorded.take("expected", "runs", "main", mode))
    with check.at("scores", "odd", "fixed"):
        # As published the script stops, so no number can agree; the items at which it stops are named.
        scores, _, summary = check.answered(check.benchmark("fixed"), check.recorded.take("answers", "runs", "odd"))
        wanted = dict(check.recorded.take("expected", "runs", "odd", "fixed"))
        for id, parsed in wanted.pop("parsed").items():
            check.same(f"{id}.parsed", scores[id].detail["parsed"], parsed)
        check.numbers(rows_of(summary), wanted)
    with check.at("scores", "odd", "as_published"):
        _, _, summary = check.answered(check.benchmark(), check.recorded.peek("answers", "runs", "odd"))
        stops = check.recorded.take("expected", "runs", "odd", "as_published")
        named = next(iter(summary.extra.values()))
        empty = [id for id, answer in check.recorded.peek("answers", "runs", "odd").items() if not answer.strip()]
        check.same("stops", {"fails": "IndexError"} if named else None, stops)
        check.same("named", named, empty)


def check_pope(check: Check) -> None:
    """Labels by the first sentence, counts and F1; both modes agree."""
    for name in (_PLAIN, _THINKING):
        with check.at("prompts", name):
            check.questions(check.benchmark(think=name == _THINKING), name)
    for mode in MODES:
        for run, think in (("main", False), ("cot", True)):
            with check.at("scores", run, mode):
                bench = check.benchmark(mode, think=think)
                scores, _, summary = check.answered(bench, check.recorded.take("answers", "runs", run))
                compare_items(check, scores, check.recorded.take("expected", "runs", run, "items"), mode)
                for name, wanted in check.recorded.take("expected", "runs", run, "as_published").items():
                    if not isinstance(wanted, Mapping):
                        check.close(name, summary.rows[name].value, wanted)
                        continue
                    pairs = [
                        (item.facts["truth"], scores[item.id].detail["label"])
                        for item in bench.items()
                        if item.facts["category"] == name
                    ]
                    check.same(f"{name}.counts", _counts(pairs), {key: wanted[key] for key in ("n", *_COUNTS)})
                    for row, value in wanted.items():
                        if row not in ("n", *_COUNTS):
                            check.close(f"{name}.{row}", summary.rows[f"{name}/{row}"].value, value)


_COUNTS = {"TP": ("yes", "yes"), "FP": ("no", "yes"), "TN": ("no", "no"), "FN": ("yes", "no")}


def _counts(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The number of pairs of truth and label in all, and by kind."""
    return {"n": len(pairs), **{name: pairs.count(kind) for name, kind in _COUNTS.items()}}
