"""Recorded data are judged: the copy in the tests agrees, a spoiled one does not, and a strange one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bagel_mot.cli import app
from bagel_mot.errors import DataError
from bagel_mot.verify import verify
from bagel_mot.verify.data import JUDGES, verify_data
from bagel_mot.verify.data.judge import RecordJudge
from bagel_mot.verify.data.recorded import KINDS, RecordedData

GOLDEN = Path(__file__).parents[1] / "golden-data"

Case = dict[str, Any]


@pytest.fixture(scope="module")
def recorded() -> RecordedData:
    return RecordedData(GOLDEN)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "set"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "cases.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", JUDGES)
def test_every_record_agrees(recorded: RecordedData, kind: str) -> None:
    cases = [case for case in recorded.cases if case["kind"] == kind]
    assert cases
    for case in cases:
        judge = RecordJudge(case, recorded)
        judge.run(JUDGES[kind])
        assert judge.rows
        assert not [row for row in judge.rows if not row.passed]


def test_the_whole_set_passes_and_its_quirks_are_counted_apart() -> None:
    report = verify(GOLDEN)
    assert report.passed, report.failed[:5]
    assert {row.case for row in report.rows} >= {case["name"] for case in RecordedData(GOLDEN).cases}
    images = {name: count for name, count in report.differing.items() if "order" not in name}
    assert {name[:12] for name in images} >= {"the orientat", "accepted, be", "alpha is thr"}


def test_every_kind_has_a_judge() -> None:
    assert set(JUDGES) == set(KINDS)


def case_of(content: dict[str, Any], name: str) -> Case:
    return next(case for case in content["cases"] if case["name"] == name)


SPOILED: dict[str, Callable[[dict[str, Any]], object]] = {
    # name of the case that must fail: the change of one number in it
    "t2i/part-0/0/0": lambda c: c["outcomes"][0]["plan"][1].update(tokens=17),
    "t2i/part-0/1/4": lambda c: c["outcomes"][0]["plan"][1]["size"].__setitem__(0, 96),
    "chat/8": lambda c: c["outcomes"][0].update(packed=62),
    "frames_png/0": lambda c: c["outcomes"][0]["weight"].__setitem__(1, 3),
    "flat_instructions/row/0/0": lambda c: c["outcomes"][0]["plan"][0].update(tokens=13),
    "picture/chat/9/3": lambda c: c["vit_of_3"].__setitem__(0, 70),
    "picture/t2i/part-0/1/4/0": lambda c: c["size"].__setitem__(0, 81),
    "read/vlm_sft": lambda c: c["skipped"].__setitem__(0, "chat/5"),
    "frames/rand_3_of_9": lambda c: c["one_of"][0]["frames"].__setitem__(2, 8),
    "frames/fps2_75_at_30": lambda c: c.update(input_fps=29),
    "config/unnamed_file": lambda c: c["left_out"].__setitem__(0, "data/editing/chains/chain-7.parquet"),
    "limits": lambda c: c.update(refuse_above_pixels=300_000_000),
    "groups/numbers": lambda c: c["numbers"].__setitem__(2, 0.2501),
    "run/roomy": lambda c: c["settings"].update(expected_num_tokens=445),
    "run/short": lambda c: c["lengths"].__setitem__(1, 323),
    "run/dropped": lambda c: c["streams"]["t2i_pretrain"][0].__setitem__(2, 67),
    "run/crowded": lambda c: c["lengths"].__setitem__(2, 273),
    "plan/official": lambda c: c["streams"]["a"].__setitem__(3, c["streams"]["a"][3] + 900),
    "plan/weights": lambda c: c["padding"].__setitem__(0, 1),
    "plan/mandatory_too_large": lambda c: c["over_max"].__setitem__(0, 5),
    "pack/plain": lambda c: c["sample_lens"].__setitem__(0, 3),
    "pack/no_vit": lambda c: c["normals"].__setitem__(0, c["normals"][0] + 1e-4),
    "pack/oversize": lambda c: c["flex"]["split_lens"].__setitem__(-1, -1),
    "shard/t2i_3x2": lambda c: c["order"]["1/0"][0].__setitem__(2, 1),
    "shard/chat_cut_5": lambda c: c.update(shuffle_seed=6),
    "shard/edit_2x2": lambda c: c["status"]["0/0"][0].__setitem__(1, 1),
    "shard/t2i_too_many": lambda c: c.update(world=7),
    "resume/edit_2": lambda c: c["data_status"]["0"].__setitem__(1, 0),
    "resume/chat_1": lambda c: c["reads"].__setitem__(1, 5),
    "resume/missing_worker": lambda c: c["data_status"].update({"1": [0, 0]}),
    "resume_run/buffer": lambda c: c["data_status"]["vlm_sft"].update({"0": 8}),
}


@pytest.mark.parametrize("name", SPOILED)
def test_one_changed_number_is_seen(recorded: RecordedData, name: str) -> None:
    case = json.loads(json.dumps(recorded.by_name(name)))
    SPOILED[name](case)
    judge = RecordJudge(case, recorded)
    judge.run(JUDGES[case["kind"]])
    assert [row for row in judge.rows if not row.passed]


def test_every_kind_has_a_spoiled_record(recorded: RecordedData) -> None:
    assert {recorded.by_name(name)["kind"] for name in SPOILED} == set(JUDGES)


def test_one_changed_pixel_is_seen(copy: Path) -> None:
    tensors = load_file(copy / "expected.safetensors")
    changed = next(name for name in tensors if name.startswith("picture/") and name.endswith("vit"))
    tensors[changed].view(-1)[5] += 0.01
    save_file(tensors, copy / "expected.safetensors")
    recorded = RecordedData(copy)
    judge = RecordJudge(recorded.by_name(changed.rpartition("/")[0]), recorded)
    judge.run(JUDGES["picture"])
    assert {row.quantity for row in judge.rows if not row.passed} == {"vit pixels", "by default: vit pixels"}


def test_a_tensor_that_nothing_compares_fails(copy: Path) -> None:
    tensors = {**load_file(copy / "expected.safetensors"), "picture/unknown/vae": torch.zeros(1)}
    save_file(tensors, copy / "expected.safetensors")
    rewrite(copy, lambda content: content.update(cases=[c for c in content["cases"] if c["kind"] == "limits"]))
    failed = {row.case for row in verify_data(copy) if not row.passed}
    assert "picture/unknown/vae" in failed
    assert "limits" not in failed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: case_of(content, "limits").update(kind="limit"), "is of kind 'limit'"),
        (lambda content: case_of(content, "limits").update(mark="odd"), "is marked 'odd'"),
        (lambda c: case_of(c, "chains/chain-0/0/0")["outcomes"][2].update(mark="odd"), "is marked 'odd'"),
        (lambda content: content.update(format=2), "format 2"),
        (lambda content: content.update(more={}), "more"),
        (lambda content: content["cases"].append(content["cases"][0]), "two cases of the name"),
        (lambda content: content.update(cases=[]), "no list of cases"),
        (lambda content: content["cases"].append({"name": "x", "kind": "row"}), "no mark"),
    ],
)
def test_what_is_not_known_is_refused(copy: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    rewrite(copy, change)
    with pytest.raises(DataError, match=said):
        verify_data(copy)


def test_an_unknown_and_a_missing_file_are_refused(copy: Path) -> None:
    (copy / "data" / "more.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"more\.bin is a file that nothing"):
        verify_data(copy)
    (copy / "data" / "more.bin").unlink()
    (copy / "data" / "vlm" / "chat.jsonl").unlink()
    with pytest.raises(DataError, match=r"chat\.jsonl is missing"):
        verify_data(copy)
    (copy / "expected.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="safetensors"):
        verify_data(copy)


def test_a_sentence_on_what_would_be_right_must_be_known(recorded: RecordedData) -> None:
    judge = RecordJudge({**recorded.by_name("chat/21"), "instead": "read backwards"}, recorded)
    judge.run(JUDGES["row"])
    assert any("is not known" in row.note for row in judge.rows if not row.passed)


def test_the_command_names_the_quirks_that_differ_and_refuses_a_strange_set(copy: Path) -> None:
    rewrite(copy, lambda content: content.update(cases=[c for c in content["cases"] if c["kind"] in ("row", "limits")]))
    tensors = load_file(copy / "expected.safetensors")
    save_file({"unused": next(iter(tensors.values()))}, copy / "expected.safetensors")
    result = CliRunner().invoke(app, ["verify", str(copy), "--failed"])
    assert result.exit_code == 1
    assert "1 FAIL" in result.output
    assert "differ where the published program may: the orientation is not applied" in " ".join(result.output.split())
    (copy / "data" / "more.bin").write_bytes(b"x")
    result = CliRunner().invoke(app, ["verify", str(copy)])
    assert result.exit_code == 2
    assert "more.bin" in "".join(result.output.split())
