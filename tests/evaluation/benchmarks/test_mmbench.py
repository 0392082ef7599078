"""MMBench on the recorded answers, and the file for its server."""

from __future__ import annotations

from pathlib import Path

import pytest

from bagel_mot.errors import DataError, SettingError
from bagel_mot.evaluation.base import BenchmarkOptions, ItemResult, Protocol
from bagel_mot.evaluation.benchmarks.mmbench import MMBench
from bagel_mot.evaluation.data import read_xlsx
from tests.evaluation.benchmarks import golden

pytest.importorskip("openpyxl")

EXPECTED = golden.load("mmbench", "expected")["runs"]
ANSWERS = golden.load("mmbench", "answers")["runs"]
VARIANTS = {
    "mmbench_dev_20230712": "dev-en",
    "mmbench_dev_cn_20231003": "dev-cn",
    "mmbench_test_en_20231003": "test-en",
}


@pytest.mark.parametrize(("run", "variant"), VARIANTS.items())
def test_prompts(run: str, variant: str) -> None:
    items = MMBench(golden.options("mmbench", variant=variant)).items()
    golden.check_prompts(items, golden.load("mmbench", "prompts")[run]["items"])
    assert {item.id: list(item.facts["options"]) for item in items} == {
        id: wanted["options_seen"] for id, wanted in EXPECTED[run]["items"].items()
    }


@pytest.mark.parametrize("mode", golden.MODES)
@pytest.mark.parametrize(("run", "variant"), VARIANTS.items())
def test_scores(run: str, variant: str, mode: Protocol) -> None:
    bench = MMBench(golden.options("mmbench", variant=variant, protocol=mode))
    scores, _, summary = golden.scored(bench, ANSWERS[run])
    fixed = mode is Protocol.FIXED
    for id, wanted in EXPECTED[run]["items"].items():
        assert scores[id].detail["parsed"] == wanted["parsed"], id
        assert scores[id].values["right"] == wanted.get("right_fixed" if fixed else "right"), id
    if derived := EXPECTED[run].get("local_score_derived"):
        rows = derived["fixed_parse" if fixed else "as_published_parse"]
        assert summary.rows["circular"].count == rows.pop("groups")
        categories = rows.pop("circular_by_l2_category")
        golden.check_rows(summary, {**rows, **{f"circular/{name}": value for name, value in categories.items()}})
    else:
        assert summary.rows["circular"].value is None
        assert summary.extra == {"scored by": "the server of MMBench alone"}


@pytest.mark.parametrize(("run", "variant"), VARIANTS.items())
def test_the_file_for_the_server(tmp_path: Path, run: str, variant: str) -> None:
    bench = MMBench(golden.options("mmbench", variant=variant))
    scores, _, _ = golden.scored(bench, ANSWERS[run])
    results = {id: ItemResult((answer,)) for id, answer in ANSWERS[run].items()}
    (path,) = bench.write_submission(tmp_path, results, scores)
    rows = read_xlsx(path)
    assert list(rows[0]) == EXPECTED[run]["columns_of_results_xlsx"]
    assert list(rows[0])[6] == "prediction"
    assert {row["index"]: row["prediction"] for row in rows} == {
        int(id): wanted["parsed"] for id, wanted in EXPECTED[run]["items"].items()
    }


def test_an_empty_answer() -> None:
    for mode, parsed in ((Protocol.PUBLISHED, "C"), (Protocol.FIXED, None)):
        bench = MMBench(golden.options("mmbench", protocol=mode))
        score = golden.scored(bench, {item.id: " \n" for item in bench.items()})[0]["241"]
        assert score.detail["parsed"] == parsed
        assert score.unparsable == (parsed is None)


def test_incomplete_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not complete.*questions 7 of 1164"):
        MMBench(BenchmarkOptions(golden.ROOT / "mmbench" / "data")).items()
    with pytest.raises(DataError, match="lacks mmbench_test_cn_20231003.tsv"):
        MMBench(golden.options("mmbench", variant="test-cn")).items()
    with pytest.raises(SettingError, match="no variant 'dev': there are dev-en, "):
        MMBench(golden.options("mmbench", variant="dev"))
    lines = (golden.ROOT / "mmbench" / "data" / "mmbench" / "mmbench_test_en_20231003.tsv").read_text().splitlines()
    path = tmp_path / "mmbench_test_en_20231003.tsv"
    path.write_text("\n".join(lines))
    whole = BenchmarkOptions(tmp_path, variant="test-en")
    assert len(MMBench(whole).items()) == 4
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"lacks rotations of 1 of 1 questions \(index 248\)"):
        MMBench(whole).items()
    path.write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(DataError, match="1 of its rows repeat an index"):
        MMBench(whole).items()


def test_an_image_may_be_named_by_the_row_that_has_it(tmp_path: Path) -> None:
    text = (golden.ROOT / "mmbench" / "data" / "mmbench" / "mmbench_test_en_20231003.tsv").read_text()
    head, *lines = text.splitlines()
    place = head.split("\t").index("image")
    cells = [line.split("\t") for line in lines]
    for row in cells[1:]:
        row[place] = cells[0][0]
    (tmp_path / "mmbench_test_en_20231003.tsv").write_text("\n".join([head, *map("\t".join, cells)]))
    items = MMBench(BenchmarkOptions(tmp_path, variant="test-en")).items()
    assert len({item.images[0].data() for item in items}) == 1  # type: ignore[union-attr]
