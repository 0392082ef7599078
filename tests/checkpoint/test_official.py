"""The official layout: round trip, strictness, and what loading costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bagel_mot import Bagel
from bagel_mot.checkpoint import source
from bagel_mot.checkpoint.convert import convert
from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.official import fingerprint, load_checkpoint, read_config, save_checkpoint
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.checkpoint.source import safetensors_files
from bagel_mot.config import BagelConfig, DecoderConfig, VaeConfig, VitConfig
from bagel_mot.errors import CheckpointError
from bagel_mot.files import write_atomically
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.vae import Autoencoder

Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def changed(golden: Any, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the golden checkpoint with tensors of one file changed."""

    def make(change: Change, file: str = "ema.safetensors") -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(golden.checkpoint, folder)
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)
        return folder

    return make


def test_names_are_the_official_ones(golden: Any) -> None:
    official = load_file(golden.checkpoint / "ema.safetensors")
    model = BagelModel(read_config(open_checkpoint(golden.checkpoint)))
    assert {official_name(name) for name in model.state_dict()} == set(official)


def test_round_trip(golden: Any, tmp_path: Path) -> None:
    loaded = load_checkpoint(golden.checkpoint, precision=torch.float32)
    save_checkpoint(
        tmp_path / "out",
        loaded.config,
        model=loaded.model.state_dict(),
        autoencoder=loaded.autoencoder.state_dict(),
        tokenizer=loaded.tokenizer,
        dtype=None,
    )
    for file in ("ema.safetensors", "ae.safetensors"):
        before, after = load_file(golden.checkpoint / file), load_file(tmp_path / "out" / file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    again = load_checkpoint(tmp_path / "out", precision=torch.float32)
    assert again.config == loaded.config
    assert again.tokenizer.encode("a red circle") == loaded.tokenizer.encode("a red circle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("llm2vae.bias"), "lacks: llm2vae.bias"),
        (lambda t: t.update({"extra.weight": torch.zeros(1)}), "unknown tensor: extra.weight"),
        (lambda t: t.update({"llm2vae.bias": torch.zeros(17)}), r"llm2vae.bias is \[17\]"),
        (lambda t: t["latent_pos_embed.pos_embed"].add_(0.01), "off its formula"),
        (lambda t: t.update({"vit_pos_embed.pos_embed": torch.zeros(99, 64)}), "99 entries"),
    ],
    ids=["missing", "extra", "misshapen", "table changed", "table not square"],
)
def test_what_does_not_belong_is_named(changed: Callable[..., Path], change: Change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(changed(change))


def test_the_autoencoder_is_strict_too(changed: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"lacks: decoder.conv_in.bias"):
        load_checkpoint(changed(lambda t: t.pop("decoder.conv_in.bias"), "ae.safetensors"))


def test_missing_tables_are_rebuilt(golden: Any, changed: Callable[..., Path]) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["latent_pos_embed.pos_embed"], tensors["vit_pos_embed.pos_embed"]

    whole, rebuilt = (load_checkpoint(f, precision=torch.float32) for f in (golden.checkpoint, changed(drop)))
    for name in ("latent_pos_embed", "vit_pos_embed"):
        assert torch.allclose(getattr(whole.model, name), getattr(rebuilt.model, name), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_files_that_were_made_from_bfloat16_are_taken(golden: Any, changed: Callable[..., Path], dtype: Any) -> None:
    """Their position tables are rounded as those of the official file are, which their type does not tell."""

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(torch.bfloat16).to(dtype)

    got = load_checkpoint(changed(widen), precision=torch.float32)
    whole = load_checkpoint(golden.checkpoint, precision=torch.float32)
    assert torch.allclose(got.model.latent_pos_embed, whole.model.latent_pos_embed, atol=4e-3)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "bagel.safetensors.index.json"])
def test_shards_may_stand_in_a_folder_and_have_any_name(golden: Any, tmp_path: Path, index: str) -> None:
    convert(golden.checkpoint, tmp_path / "new", "bf16", shard_size=200_000)
    (found,) = (tmp_path / "new").glob("*.index.json")
    shards = sorted((tmp_path / "new").glob("*-of-*"))
    (tmp_path / "new" / "sub").mkdir()
    for shard in shards:
        shard.rename(tmp_path / "new" / "sub" / shard.name)
    (tmp_path / "new" / index).write_text(
        found.read_text().replace('"model-', '"sub/model-').replace('"ema-', '"sub/ema-')
    )
    if found.name != index:
        found.unlink()
    assert len(shards) > 1
    assert load_checkpoint(tmp_path / "new").config == read_config(open_checkpoint(golden.checkpoint))
    shards[0] = tmp_path / "new" / "sub" / shards[0].name
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=f"names sub/{shards[0].name}, which is missing"):
        load_checkpoint(tmp_path / "new")


def test_an_index_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    for name in ("../other.safetensors", "/etc/passwd"):
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="which is outside its folder"):
            safetensors_files(path)


def test_the_table_decides_its_size(golden: Any, changed: Callable[..., Path]) -> None:
    """The published default (32) does not fit the published weights (64): the table is to be believed."""
    folder = changed(lambda t: None)
    text = (folder / "config.json").read_text().replace('"max_latent_size": 8', '"max_latent_size": 4')
    (folder / "config.json").write_text(text)
    assert read_config(open_checkpoint(folder)).max_latent_size == 8


@pytest.mark.parametrize("file", ["ema.safetensors", "ae.safetensors", "llm_config.json", "tokenizer.json"])
def test_missing_files(golden: Any, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(golden.checkpoint, folder)
    (folder / file).unlink()
    if file == "llm_config.json":
        (folder / "config.json").write_text("{}")
    if file == "tokenizer.json":
        (folder / "vocab.json").unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)


@pytest.mark.parametrize("file", ["ema.safetensors", "ema.gguf", "config.json", "merges.txt"])
def test_a_fingerprint_is_that_of_weights_and_settings(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("1")
    before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("about it")
    assert fingerprint(tmp_path) == before
    (tmp_path / file).write_text("2")
    assert fingerprint(tmp_path) != before


def test_a_truncated_file_is_noticed(golden: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(golden.checkpoint, folder)
    path = folder / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="could not be read as safetensors"):
        load_checkpoint(folder)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


_MEASURE = """
import sys, threading, time, torch
from bagel_mot.checkpoint.official import load_checkpoint
from bagel_mot.checkpoint.precision import parse_precision
from bagel_mot.checkpoint.opening import open_checkpoint
from pathlib import Path

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024

def watch():
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)

precision = parse_precision(sys.argv[3])
load_checkpoint(sys.argv[1], precision=precision)  # libraries and allocator are there
peak = [0]
base = resident()
threading.Thread(target=watch, daemon=True).start()
loaded = load_checkpoint(sys.argv[2], precision=precision)
time.sleep(0.01)
size = sum(t.nbytes for m in (loaded.model, loaded.autoencoder) for t in (*m.parameters(), *m.buffers()))
source = open_checkpoint(sys.argv[2])
largest = max(source.stored_bytes(name) for name in source.names())
print((peak[0] - base) / (size + int(sys.argv[4]) * largest))
"""


@pytest.fixture(scope="module")
def middling(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 400 million parameters."""
    folder = tmp_path_factory.mktemp("middling")
    config = BagelConfig(
        decoder=DecoderConfig(
            hidden_size=1536, num_layers=6, num_heads=12, num_kv_heads=2, intermediate_size=6144, vocab_size=8192
        ),
        vit=VitConfig(hidden_size=64, num_layers=1, num_heads=2, intermediate_size=64),
        vae=VaeConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4),
    )
    save_checkpoint(
        folder,
        config,
        model=BagelModel(config).state_dict(),
        autoencoder=Autoencoder(config.vae).state_dict(),
        tokenizer=load_checkpoint(golden.checkpoint).tokenizer,
    )
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("precision", "tensors"), [("bfloat16", 1), ("int8", 2), ("fp8", 2), ("int4", 2), ("nf4", 2)])
def test_loading_needs_the_result_and_few_tensors(golden: Any, middling: Path, precision: str, tensors: int) -> None:
    """Resident memory, mapped pages of the file included. While one tensor is rounded the next one is read."""
    command = [sys.executable, "-c", _MEASURE, str(golden.checkpoint), str(middling), precision, str(tensors)]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.9 <= ratio <= 1.1


def test_headers_are_read_once_per_load(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = source.read_header

    def counted(path: Path) -> Any:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(source, "read_header", counted)
    Bagel.from_pretrained(golden.checkpoint, device="cpu")
    assert sorted(read) == ["ae.safetensors", "ema.safetensors"]
    read.clear()
    Bagel.from_pretrained(golden.checkpoint, device="cpu", memory="20GB")  # with a plan
    assert sorted(read) == ["ae.safetensors", "ema.safetensors"]


# ------------------------------------------------------------------------------------------- files as they are found


def test_files_saved_with_a_byte_order_mark_are_read(golden: Any, tmp_path: Path) -> None:
    folder = tmp_path / "marked"
    shutil.copytree(golden.checkpoint, folder)
    (folder / "bagel_defaults.json").write_text('{"generate": {"size": [32, 32], "num_timesteps": 3}}')
    (folder / "generation_config.json").write_text('{"temperature": 0.7}')
    texts = [*sorted(folder.glob("*.json")), folder / "merges.txt"]
    assert {"config.json", "llm_config.json", "vit_config.json", "tokenizer.json"} <= {path.name for path in texts}
    for path in texts:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Bagel.from_pretrained(folder).generate("a cat").size == (32, 32)
    (folder / "tokenizer.json").unlink()
    assert Bagel.from_pretrained(folder).generate("a cat").size == (32, 32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "is a Git LFS pointer.*git lfs pull"),
        (b"", "is empty"),
        (b"<!doctype html><title>Not found</title>", "is a web page"),
        (None, "is a folder"),
    ],
)
@pytest.mark.parametrize(
    "name", ["ema.safetensors", "ae.safetensors", "config.json", "llm_config.json", "vocab.json", "merges.txt"]
)
def test_what_is_no_such_file_is_named(
    golden: Any, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = tmp_path / "found"
    shutil.copytree(golden.checkpoint, folder)
    (folder / "tokenizer.json").unlink()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    elif name in ("vocab.json", "merges.txt"):
        return  # such a folder counts as a missing file
    else:
        (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=rf"{name} {message}"):
        load_checkpoint(folder)


def test_the_other_layouts_and_a_single_tokenizer_too(golden: Any, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    shutil.copytree(golden.checkpoint, folder)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"
    (folder / "tokenizer.json").write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a Git LFS pointer"):
        load_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"index\.json is a Git LFS pointer"):
        open_checkpoint(folder / "model.safetensors.index.json")
    pytest.importorskip("gguf")
    (folder / "ema.gguf").write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"ema\.gguf is a Git LFS pointer"):
        open_checkpoint(folder / "ema.gguf")
