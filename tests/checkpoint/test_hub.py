"""Downloads from a small hub on this machine: what is fetched, resumed, checked, and said when it cannot be had."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file
from typer.testing import CliRunner

from bagel_mot import Bagel
from bagel_mot.checkpoint.convert import convert
from bagel_mot.checkpoint.hub.download import download
from bagel_mot.checkpoint.official import load_checkpoint, read_config
from bagel_mot.checkpoint.opening import open_checkpoint, open_source
from bagel_mot.checkpoint.write import entry_of, write_model
from bagel_mot.cli import app
from bagel_mot.errors import CheckpointError
from bagel_mot.model.bagel import BagelModel
from tests.checkpoint.fake_hub import FakeHub, be_the_hub, running

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoint"
REPOSITORY = "owner/name"
NEEDED = {path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.is_file()}
UNNEEDED = {"README.md": b"read me", "assets/picture.png": b"png", "lora.safetensors": b"lora", ".gitattributes": b"x"}
WEIGHTS = "ema.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running({**NEEDED, **UNNEEDED}) as server:
        be_the_hub(server, tmp_path / "cache", monkeypatch)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------- what is fetched


def test_only_what_is_needed_into_a_folder(hub: FakeHub, tmp_path: Path) -> None:
    assert download(REPOSITORY, folder=tmp_path / "new") == tmp_path / "new"
    assert contents(tmp_path / "new") == NEEDED
    assert all(len(hub.received(name)) == 1 for name in NEEDED)
    assert not any(hub.received(name) for name in UNNEEDED)
    assert load_checkpoint(tmp_path / "new").config == read_config(open_checkpoint(GOLDEN))


def test_into_the_cache_where_the_package_finds_it(hub: FakeHub) -> None:
    from huggingface_hub import snapshot_download

    folder = download(REPOSITORY)
    assert contents(folder) == NEEDED
    assert folder == Path(snapshot_download(REPOSITORY, local_files_only=True))
    assert all(len(hub.received(name)) == 1 for name in NEEDED)  # naming them in the cache received nothing
    hub.requests.clear()
    assert download(REPOSITORY) == folder
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{REPOSITORY}"]


def test_from_pretrained_takes_a_name_at_the_hub(hub: FakeHub) -> None:
    bagel = Bagel.from_pretrained(REPOSITORY, device="cpu")
    local = Bagel.from_pretrained(GOLDEN, device="cpu")
    question = {"max_new_tokens": 3, "do_sample": False}
    assert bagel.ask(None, "What is red?", **question) == local.ask(None, "What is red?", **question)
    assert hub.received(WEIGHTS) == [0]


@pytest.mark.slow
def test_from_pretrained_tells_how_far_it_is_and_can_be_stopped(hub: FakeHub) -> None:
    class Stopped(Exception):
        pass

    for stage in ("downloading", "loading"):

        def stop(doing: str, done: int, total: int, stage: str = stage) -> None:
            if doing == stage and 0 < done < total:
                raise Stopped

        before = _models()
        with pytest.raises(Stopped):
            Bagel.from_pretrained(REPOSITORY, device="cpu", progress=stop)
        assert _models() == before
    seen: list[tuple[str, int, int]] = []
    Bagel.from_pretrained(REPOSITORY, device="cpu", progress=lambda *told: seen.append(told))
    assert list(dict.fromkeys(doing for doing, _, _ in seen)) == ["downloading", "loading"]
    for doing, size in (("downloading", None), ("loading", _stored_bytes(GOLDEN))):
        counts = [(done, total) for told, done, total in seen if told == doing]
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1] == (size or counts[0][1])


def _models() -> int:
    """Models in memory."""
    gc.collect()
    return sum(type(found) is BagelModel for found in gc.get_objects())


def _stored_bytes(folder: Path) -> int:
    """Bytes of all tensors in a folder."""
    return sum(tensor.nbytes for path in folder.glob("*.safetensors") for tensor in load_file(path).values())


def test_progress_counts_what_is_here_too(hub: FakeHub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    download(REPOSITORY, folder=tmp_path, progress=lambda done, total: seen.append((done, total)))
    whole = sum(map(len, NEEDED.values()))
    assert {total for _, total in seen} == {whole}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (whole, whole)
    seen.clear()
    download(REPOSITORY, folder=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (whole, whole)


def test_shards_that_an_index_names(hub: FakeHub, tmp_path: Path) -> None:
    source = open_source(GOLDEN / WEIGHTS)
    write_model(tmp_path / "shards" / "ema.safetensors", [entry_of(n, source.read(n)) for n in source.names()], 200_000)
    shards = contents(tmp_path / "shards")
    assert len(shards) > 3
    hub.files = {**{name: content for name, content in NEEDED.items() if name != WEIGHTS}, **UNNEEDED, **shards}
    folder = download(REPOSITORY, folder=tmp_path / "new")
    assert set(shards) < {path.name for path in folder.iterdir()}
    assert not (folder / "lora.safetensors").exists()
    assert load_checkpoint(folder).config == read_config(open_checkpoint(GOLDEN))
    hub.files.pop(next(name for name in shards if name.endswith(".safetensors")))
    with pytest.raises(CheckpointError, match=r"the index .* names model-00001-of-.*, which the repository lacks"):
        download(REPOSITORY, folder=tmp_path / "again")


@pytest.mark.parametrize("name", ["../../evil.bin", "/tmp/evil.bin", "..\\evil.bin", "C:evil"])
def test_a_mirror_cannot_write_outside_the_folder(hub: FakeHub, tmp_path: Path, name: str) -> None:
    index = json.dumps({"weight_map": {"a": name}}).encode()
    hub.files = {"config.json": b"{}", "model.safetensors.index.json": index, name: b"evil"}
    folder = tmp_path / "deep" / "folder"
    with pytest.raises(CheckpointError, match="which is outside its folder"):
        download(REPOSITORY, folder=folder)
    with pytest.raises(CheckpointError, match="which is outside its folder"):
        download(REPOSITORY)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


def test_a_mirror_cannot_write_outside_the_cache(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the cache are named by their checksums, as the mirror lists them."""
    monkeypatch.setattr("tests.checkpoint.fake_hub.git_hash", lambda content: f"../../../{len(content)}")
    with pytest.raises(CheckpointError, match="the hub gives no checksum of config.json"):
        download(REPOSITORY)
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_a_version_of_the_package_without_what_is_used_is_said(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("huggingface_hub.file_download.http_get")
    with pytest.raises(CheckpointError, match=r"has no http_get, .*: install .*'huggingface_hub>=0.30,<3'"):
        download(REPOSITORY)


def test_one_of_several_files_of_gguf(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {name: content for name, content in NEEDED.items() if name != WEIGHTS}
    hub.files |= {"bagel-Q8_0.gguf": b"eight", "bagel-Q4_0.gguf": b"four"}
    with pytest.raises(CheckpointError, match=r"several files with weights \(bagel-Q4_0.gguf, bagel-Q8_0.gguf\)"):
        download(REPOSITORY, folder=tmp_path / "none")
    folder = download(REPOSITORY, folder=tmp_path / "one", stored="gguf-q8_0")
    assert {path.name for path in folder.glob("*.gguf")} == {"bagel-Q8_0.gguf"}


def test_all_files_of_dfloat11(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {**NEEDED, "config.json": b'{"dfloat11_config": {}}', "layer_0.safetensors": b"codes"}
    assert (download(REPOSITORY, folder=tmp_path) / "layer_0.safetensors").read_bytes() == b"codes"


# ------------------------------------------------------------------------------------------ broken off, and resumed


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut[WEIGHTS] = [100_000, 50_000]
    seen: list[int] = []
    folder = download(REPOSITORY, folder=tmp_path / "new", progress=lambda done, total: seen.append(done))
    assert contents(folder) == NEEDED
    assert hub.received(WEIGHTS) == [0, 100_000, 150_000]
    assert seen[-1] == sum(map(len, NEEDED.values()))


def test_the_next_process_goes_on_where_the_last_one_was_killed(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut[WEIGHTS] = [100_000] + [0] * 20
    with pytest.raises(CheckpointError, match=r"could not be reached or broke off .* goes on where it stopped"):
        download(REPOSITORY, folder=tmp_path / "new")
    partial = tmp_path / "new" / f"{WEIGHTS}.incomplete"
    assert partial.read_bytes() == NEEDED[WEIGHTS][:100_000]
    assert not (tmp_path / "new" / WEIGHTS).exists()
    hub.cut.clear()
    hub.requests.clear()
    assert contents(download(REPOSITORY, folder=tmp_path / "new")) == NEEDED
    assert hub.received(WEIGHTS) == [100_000]
    assert hub.received("config.json") == []


def test_so_it_does_in_the_cache(hub: FakeHub) -> None:
    hub.cut[WEIGHTS] = [100_000] + [0] * 20
    with pytest.raises(CheckpointError, match="broke off"):
        download(REPOSITORY)
    hub.cut.clear()
    hub.requests.clear()
    assert contents(download(REPOSITORY)) == NEEDED
    assert hub.received(WEIGHTS) == [100_000]


def test_interrupted_it_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(REPOSITORY, folder=tmp_path / "new", progress=interrupt)
    assert contents(download(REPOSITORY, folder=tmp_path / "new")) == NEEDED


def test_a_server_that_cannot_go_on_in_the_middle(hub: FakeHub, tmp_path: Path) -> None:
    hub.no_ranges = True
    hub.cut[WEIGHTS] = [100_000]
    seen: list[int] = []
    folder = download(REPOSITORY, folder=tmp_path / "new", progress=lambda done, total: seen.append(done))
    assert contents(folder) == NEEDED
    assert seen[-1] == sum(map(len, NEEDED.values()))


# ------------------------------------------------------------------------------------------------------- damaged


def test_a_file_that_is_sent_too_short(hub: FakeHub, tmp_path: Path) -> None:
    hub.changed[WEIGHTS] = NEEDED[WEIGHTS][:-10]
    with pytest.raises(CheckpointError, match=f"should be of size {len(NEEDED[WEIGHTS])}"):
        download(REPOSITORY, folder=tmp_path / "new")
    assert not (tmp_path / "new" / WEIGHTS).exists()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_bit_that_turned_on_the_way(hub: FakeHub, tmp_path: Path, name: str, cached: bool) -> None:
    damaged = bytearray(NEEDED[name])
    damaged[-5] ^= 1
    hub.changed[name] = bytes(damaged)
    folder = None if cached else tmp_path / "new"
    with pytest.raises(CheckpointError, match=f"{name} of owner/name came damaged: its checksum is .* was removed"):
        download(REPOSITORY, folder=folder)
    assert bytes(damaged) not in [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    hub.changed.clear()
    assert contents(download(REPOSITORY, folder=folder)) == NEEDED


def test_a_bit_that_turned_in_what_was_received_before(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / f"{WEIGHTS}.incomplete").write_bytes(b"\1" + NEEDED[WEIGHTS][1:1000])
    with pytest.raises(CheckpointError, match="came damaged"):
        download(REPOSITORY, folder=tmp_path / "new")
    assert contents(download(REPOSITORY, folder=tmp_path / "new")) == NEEDED
    assert hub.received(WEIGHTS) == [1000, 0]


def test_a_bit_that_turned_on_the_disk(hub: FakeHub, tmp_path: Path) -> None:
    folder = download(REPOSITORY, folder=tmp_path / "new")
    (folder / WEIGHTS).write_bytes(b"\1" + NEEDED[WEIGHTS][1:])
    hub.requests.clear()
    download(REPOSITORY, folder=folder)
    assert hub.received(WEIGHTS) == []  # sizes agree
    download(REPOSITORY, folder=folder, check=True)
    assert hub.received(WEIGHTS) == [0]
    assert contents(folder) == NEEDED


# -------------------------------------------------------------------------------------------- what cannot be had


def test_each_reason_has_a_sentence_of_its_own(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(name: str = REPOSITORY, **arguments: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            download(name, folder=tmp_path / "new", **arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    missing = message("nobody/nothing")
    assert "there is no repository 'nobody/nothing'" in missing
    assert hub.url in missing
    assert "has no revision 'v9'" in message(revision="v9")
    assert "'a//b' cannot be a repository" in message("a//b")
    hub.gated = True
    assert "owner/name is gated: accept its conditions at" in message()
    monkeypatch.setenv("HF_TOKEN", "right")
    assert contents(download(REPOSITORY, folder=tmp_path / "let in")) == NEEDED
    hub.gated = False
    hub.down = 500
    assert "answered 500" in message()
    hub.down = 0
    hub.files = {"README.md": b"", "config.json": b"{}"}
    assert "has no ema.safetensors or" in message()
    hub.files = {WEIGHTS: b""}
    assert "has no config.json" in message()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "could not be reached" in message()


def test_no_room(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 20_000}))
    with pytest.raises(
        CheckpointError, match=r"could not be downloaded: .* are needed in .* only 20 kB are free there"
    ):
        download(REPOSITORY, folder=tmp_path / "new")
    assert hub.received(WEIGHTS) == []


def test_without_network_the_cache_is_enough(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download(REPOSITORY)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert download(REPOSITORY) == folder
    assert contents(folder) == NEEDED


@pytest.mark.parametrize("offline", [True, False])
def test_a_part_in_the_cache_is_not_enough(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    hub.cut[WEIGHTS] = [100_000] + [0] * 20
    with pytest.raises(CheckpointError, match="broke off"):
        download(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    if not offline:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    reason = "HF_HUB_OFFLINE forbids" if offline else "could not be reached"
    with pytest.raises(CheckpointError, match=f"^only a part of owner/name is in the cache, and .*{reason}"):
        download(REPOSITORY)


def test_a_shard_that_is_not_in_the_cache_is_missed_without_network(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(GOLDEN, tmp_path / "sharded", "bf16", shard_size=200_000)
    hub.files = contents(tmp_path / "sharded")
    folder = download(REPOSITORY)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert download(REPOSITORY) == folder
    sorted(folder.glob("*-of-*"))[-1].unlink()
    with pytest.raises(CheckpointError, match="only a part"):
        download(REPOSITORY)


def test_damage_in_the_cache_is_noticed_without_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download(REPOSITORY)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert download(REPOSITORY, check=True) == folder
    (folder / WEIGHTS).resolve().write_bytes(b"\1" + NEEDED[WEIGHTS][1:])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} of owner/name is damaged in the cache"):
        download(REPOSITORY, check=True)


@pytest.mark.parametrize("cached", [True, False])
def test_a_mirror_that_lists_no_sizes(hub: FakeHub, tmp_path: Path, cached: bool) -> None:
    hub.bare = True
    folder = None if cached else tmp_path / "new"
    assert contents(download(REPOSITORY, folder=folder)) == NEEDED
    hub.requests.clear()
    assert contents(download(REPOSITORY, folder=folder, check=True)) == NEEDED
    assert not any(hub.received(name) for name in NEEDED)
    assert {method for method, path, _ in hub.requests if "resolve" in path} == {"HEAD"}


def test_a_folder_that_is_none_or_cannot_be_written(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file: give a folder"):
        download(REPOSITORY, folder=tmp_path / "file")
    with pytest.raises(CheckpointError, match="file.* cannot be written: Not a directory"):
        download(REPOSITORY, folder=tmp_path / "file" / "sub")


def test_a_folder_that_holds_something_else_stays_as_it_is(hub: FakeHub, tmp_path: Path) -> None:
    for name in ("other.gguf", "config.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(b"mine")
        with pytest.raises(CheckpointError, match=f"holds another {name} than owner/name: give another folder"):
            download(REPOSITORY, folder=folder)
        assert contents(folder) == {name: b"mine"}


@pytest.mark.slow
def test_two_processes_at_once(hub: FakeHub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    code = "from bagel_mot.checkpoint.hub.download import download; print(download('owner/name'))"
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate()[0].strip() for process in processes}
    assert len(folders) == 1
    assert contents(Path(folders.pop())) == NEEDED  # and HF_ENDPOINT was honoured


# ------------------------------------------------------------------------------------------------------ the command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["download", *map(str, arguments)])


def test_the_command(hub: FakeHub, tmp_path: Path) -> None:
    result = run(REPOSITORY, "-o", tmp_path / "new")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'new'}\n")
    assert contents(tmp_path / "new") == NEEDED
    result = run(REPOSITORY, "--revision", "main")
    assert result.exit_code == 0
    assert contents(Path(result.stdout.strip())) == NEEDED
    result = run(REPOSITORY, "-o", tmp_path / "int8", "--format", "int8")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'int8'}\n")
    assert (tmp_path / "int8" / WEIGHTS).stat().st_size < len(NEEDED[WEIGHTS])
    assert load_checkpoint(tmp_path / "int8").config == read_config(open_checkpoint(GOLDEN))


def test_the_command_refuses_before_it_fetches(hub: FakeHub, tmp_path: Path) -> None:
    for arguments, message in (
        ((REPOSITORY, "--format", "int8"), "--format int8 takes a folder to write to: give --output"),
        ((REPOSITORY, "--format", "int3", "--to", tmp_path / "x"), "the format is 'int3'"),
        ((REPOSITORY, "--format", "int8", "--output", GOLDEN), "is not empty"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert hub.requests == []
    assert run("nobody/nothing").exit_code == 2


# ------------------------------------------------------------------------------------------------- a look at it


@pytest.mark.parametrize("plan", [False, True])
def test_info_fetches_configurations_and_headers_only(hub: FakeHub, plan: bool) -> None:
    hub.files[WEIGHTS] = hub.files[WEIGHTS] + b"\0" * 4_000_000  # as if the weights were large
    result = CliRunner().invoke(app, ["info", REPOSITORY, "--json", "-", *(["--plan"] if plan else [])])
    assert result.exit_code == 0, result.output
    assert not hub.sent.keys() & {"ae.safetensors", "tokenizer.json", *UNNEEDED}
    assert sum(hub.sent.values()) < 500_000
    facts = json.loads(result.stdout)
    local = json.loads(CliRunner().invoke(app, ["info", str(GOLDEN), "--json", "-"]).stdout)
    if not plan:
        assert facts["stored_bytes"] == len(hub.files[WEIGHTS])
        assert {**facts, "name": "", "folder": "", "stored_bytes": 0} == {
            **local,
            "name": "",
            "folder": "",
            "stored_bytes": 0,
        }


def test_info_of_what_the_cache_has_asks_nobody(hub: FakeHub) -> None:
    download(REPOSITORY)
    hub.requests.clear()
    assert CliRunner().invoke(app, ["info", REPOSITORY]).exit_code == 0
    assert not hub.requests


def test_info_of_what_is_no_checkpoint(hub: FakeHub) -> None:
    del hub.files["config.json"]
    result = CliRunner().invoke(app, ["info", REPOSITORY])
    assert result.exit_code == 2
    assert "has no config.json" in result.stderr
    result = CliRunner().invoke(app, ["info", "owner/other"])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
