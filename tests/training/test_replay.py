"""Replay: what a checkpoint knows already is trained in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from bagel_mot.checkpoint.side_files import REPLAY_FILE
from bagel_mot.config import parse
from bagel_mot.data.documents import Document, ImagePart, TextPart
from bagel_mot.data.sources.base import IndexedSource
from bagel_mot.data.sources.folder import FolderConfig
from bagel_mot.data.sources.mini import MiniConfig, MiniSource
from bagel_mot.data.sources.mixed import MixedSource
from bagel_mot.errors import CheckpointError, RecipeError
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.lora import adapted_layers
from bagel_mot.parallel.launch import Launch
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.training import replay as replaying
from bagel_mot.training.lora import NAME
from bagel_mot.training.objective import add_noise, draw_timesteps, predict_velocities
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.replay import LatentsOnly, ReplayConfig, draw_images, has_latents
from bagel_mot.training.tasks.bagel import BagelBatch, BagelTask


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (64, 64), "teal").save(folder / "a.png")
    (folder / "a.txt").write_text("something teal")
    return folder


def _recipe(tmp_path: Path, images: Path, **changes: Any) -> BagelRecipe:
    raw = {
        "kind": "bagel",
        "output": tmp_path / "run",
        "init": "mini",
        "steps": 1,
        "device": "cpu",
        "precision": "float32",
        "trainable": "lora",
        "data": {"kind": "folder", "path": str(images)},
        "pack": {"rows": 2, "und": 128, "gen": 144},
        **changes,
    }
    return parse(BagelRecipe, raw, "the recipe", RecipeError)


def test_the_checkpoint_names_what_is_trained_in_between(tmp_path: Path, images: Path) -> None:
    task = BagelTask(_recipe(tmp_path, images, replay={"weight": 3.0}))
    assert isinstance(task.source, MixedSource)
    assert [group.weight for group in task.groups] == [1.0, 3.0]
    assert task.groups[0].name == str(images)
    assert task.notes() == []
    task.close()


class _Alternating(IndexedSource):
    """Texts alone at even indices."""

    def __call__(self, index: int) -> Document:
        parts: Document = [TextPart(f"document {index}")]
        return parts if index % 2 == 0 else [*parts, ImagePart(Image.new("RGB", (8, 8)), target=True)]


def test_what_has_no_latents_is_left_out() -> None:
    class Shifted(_Alternating):
        def __call__(self, index: int) -> Document:  # a further try is an odd number on
            return super().__call__(index % 1000 + index // (1 << 40))

    source = LatentsOnly(Shifted())
    assert source.name == Shifted.name
    for index in range(6):
        document = source(index)
        assert isinstance(document[-1], ImagePart)
        assert document == source(index)
    assert source(3) == Shifted()(3)
    assert isinstance(LatentsOnly(_Alternating())(2)[-1], TextPart)  # there is none: the last that was tried


@pytest.mark.parametrize(
    ("trained", "left_out"),
    [
        ({"lora": {"experts": ["gen"]}}, True),
        ({"lora": {"experts": ["und", "gen"]}}, False),
        ({"trainable": "gen"}, True),
    ],
    ids=["adapters of gen", "adapters of both", "gen"],
)
def test_where_the_gen_expert_trains_alone_all_replay_has_latents(
    tmp_path: Path, images: Path, trained: dict[str, Any], left_out: bool
) -> None:
    task = BagelTask(_recipe(tmp_path, images, replay={}, **trained))
    assert isinstance(task.source, MixedSource)
    replayed = task.source.parts[1].source
    assert isinstance(replayed, LatentsOnly if left_out else MiniSource)
    assert all(has_latents(replayed(index)) for index in range(40)) == left_out
    task.close()


def test_without_a_word_of_the_checkpoint_nothing_is_and_a_note_says_so(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    monkeypatch.setattr(ReplayConfig, "source", lambda self, known, *rest: files.update(known))
    task = BagelTask(_recipe(tmp_path, images, replay={}))
    assert REPLAY_FILE in files
    assert not isinstance(task.source, MixedSource)
    assert "nothing is replayed" in task.notes()[0]
    task.close()


def _errors(task: BagelTask, batch: BagelBatch, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The errors (Nl, latent_dim) of a batch, those without a teacher, and which tokens (Nl,) have one."""
    losses, _ = task._losses(batch, torch.Generator().manual_seed(seed))
    own, _ = task._losses(replace(batch, taught=None), torch.Generator().manual_seed(seed))
    assert batch.taught is not None
    return losses.mse, own.mse, batch.taught


def test_the_checkpoint_teaches_what_is_replayed(tmp_path: Path, images: Path) -> None:
    task = BagelTask(_recipe(tmp_path, images, replay={"weight": 1.0, "distil": True}))
    task.parallelise(Ranks.alone())
    pack = task.pack_stream(0, 1).next_batch()
    batch = task.to_device(pack)
    names = {int(number): name for number, name in enumerate(pack.datasets)}
    layout = batch.layout
    samples = layout.sample[:, layout.und_len :].flatten()[layout.latent_slots].tolist()
    assert batch.taught is not None
    assert batch.taught.tolist() == [names[sample] != str(images) for sample in samples]
    assert 0 < batch.taught.sum() < len(batch.taught)

    # A new adapter changes nothing: what is replayed is right already, and the others are as they were.
    found, own, taught = _errors(task, batch, 1)
    assert found[taught].abs().max() == 0
    assert torch.equal(found[~taught], own[~taught])
    assert own[taught & (own != 0).any(1)].min() > 0

    # With another one the errors are the squared differences from the base, of drawn images alone.
    for name, parameter in task.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    found, own, taught = _errors(task, batch, 1)
    latents = batch.values.latents
    generator = torch.Generator().manual_seed(1)
    times = draw_timesteps(layout.timesteps, task.config.timestep_shift, generator)[layout.timestep_of]
    noised = add_noise(layout, batch.values, times, torch.randn(latents.shape, generator=generator))
    with torch.no_grad():
        changed = predict_velocities(task.module, noised, MaskedAttention(layout))
        for _, layer in list(adapted_layers(task.module, NAME)):
            layer.strengths[NAME] = 0.0
        base = predict_velocities(task.module, noised, MaskedAttention(layout))
    assert (changed - base)[taught].abs().mean() > 1e-3
    drawn = layout.noised[layout.latent_image]
    assert torch.allclose(found[taught & drawn], (changed - base).square()[taught & drawn], rtol=1e-3, atol=1e-6)
    assert found[taught & ~drawn].abs().sum() == 0
    assert torch.equal(found[~taught], own[~taught])
    task.close()


def test_nobody_teaches_in_validation_or_unless_asked(tmp_path: Path, images: Path) -> None:
    task = BagelTask(_recipe(tmp_path, images, replay={"weight": 1.0}))
    assert task.to_device(task.pack_stream(0, 1).next_batch()).taught is None
    task.close()
    task = BagelTask(_recipe(tmp_path, images, replay={"weight": 1.0, "distil": True}))
    batch = task.to_device(task.pack_stream(0, 1).next_batch())
    task.module.eval()
    with torch.no_grad():
        found, own, _ = _errors(task, batch, 1)
    assert torch.equal(found, own)
    task.close()


def test_data_of_ones_own(tmp_path: Path, images: Path) -> None:
    config = ReplayConfig(data=MiniConfig(side=128))  # type: ignore[arg-type]
    source = config.source({}, MINI_FOLDER, tmp_path, 0)
    assert isinstance(source, MiniSource)
    assert source.config.side == 128


def test_a_checkpoints_malformed_file_is_refused(tmp_path: Path) -> None:
    for content in (b"kind: nothing", b"{", b"3"):
        with pytest.raises(CheckpointError, match="names no source of data"):
            ReplayConfig().source({REPLAY_FILE: content}, MINI_FOLDER, tmp_path, 0)
    assert ReplayConfig().source({}, MINI_FOLDER, tmp_path, 0) is None


def test_images_of_prompts_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red car\n\na blue boat\n")
    loaded: list[object] = []
    load: Callable[..., Any] = replaying.Bagel.from_pretrained
    monkeypatch.setattr(replaying.Bagel, "from_pretrained", lambda *given: loaded.append(given) or load(*given))
    config = ReplayConfig(prompts=prompts, images=3)
    source = config.source({}, MINI_FOLDER, tmp_path, 0)
    folder = tmp_path / "replay"
    assert [file.read_text() for file in sorted(folder.glob("*.txt"))] == [
        "a red car\n",
        "a blue boat\n",
        "a red car\n",
    ]
    before = {file: file.read_bytes() for file in folder.glob("*.png")}
    assert len(before) == len(set(before.values())) == 3
    assert source is not None
    assert len(source.groups()) == 1
    (folder / "00001.png").unlink()
    del before[folder / "00001.png"]
    draw_images(MINI_FOLDER, prompts, folder, 3)
    draw_images(MINI_FOLDER, prompts, folder, 3)
    assert {file: file.read_bytes() for file in folder.glob("*.png") if file in before} == before
    assert (folder / "00001.png").exists()
    assert len(loaded) == 2  # the third time everything was there
    assert FolderConfig(path=folder).open(0).groups()


def test_several_processes_draw_their_shares_and_wait_for_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []

    class Drawer:
        """A model that draws plain images at once."""

        def __enter__(self) -> Drawer:
            return self

        def __exit__(self, *error: object) -> None: ...

        def generate(self, prompts: list[str], seed: list[int]) -> list[Image.Image]:
            drawn.append(seed)
            return [Image.new("RGB", (8, 8), (number, 0, 0)) for number in seed]

    monkeypatch.setattr(replaying.Bagel, "from_pretrained", lambda *given: Drawer())
    prompts, folder, store = tmp_path / "prompts.txt", tmp_path / "replay", torch.distributed.HashStore()
    prompts.write_text("a red car\n")
    with ThreadPoolExecutor(1) as other:
        first = other.submit(draw_images, MINI_FOLDER, prompts, folder, 5, Launch(0, 2, store=store))
        while len(list(folder.glob("*.png"))) < 3:
            assert not first.done()  # it waits for the second
            time.sleep(0.01)
        draw_images(MINI_FOLDER, prompts, folder, 5, Launch(1, 2, store=store))
        first.result()
    assert drawn == [[0, 2, 4], [1, 3]]
    assert [path.name for path in sorted(folder.glob("*.png"))] == [f"{number:05d}.png" for number in range(5)]


def test_what_is_refused(tmp_path: Path, images: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(RecipeError, match="replay.prompts is .*holds no text"):
        draw_images(MINI_FOLDER, empty, tmp_path / "replay", 1)
    with pytest.raises(RecipeError, match="replay has data and prompts"):
        _recipe(tmp_path, images, replay={"data": {"kind": "mini"}, "prompts": "x.txt"})
    with pytest.raises(RecipeError, match=r"replay\.distil takes .* adapters alone; trainable is \['gen'\]"):
        _recipe(tmp_path, images, replay={"distil": True}, trainable="gen")
