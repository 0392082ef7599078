"""Packs of every kind train, and accumulation gives what one large pack would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.checkpoint.convert import convert
from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.official import load_checkpoint, save_checkpoint
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.checkpoint.side_files import DEFAULTS_FILE, PREVIEW_FILE, SCOPE_FILE
from bagel_mot.config import BagelConfig, load_config
from bagel_mot.data.documents import ImagePart, IndexedSample
from bagel_mot.data.feed import GroupItem
from bagel_mot.data.layout import lay_out
from bagel_mot.data.sources.base import Source
from bagel_mot.data.sources.mini import MiniSource
from bagel_mot.data.supply import KeyedItem
from bagel_mot.errors import CheckpointError, RecipeError
from bagel_mot.inference import loading
from bagel_mot.inference.defaults import read_defaults
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.vae import Autoencoder
from bagel_mot.sequence import TextSegment
from bagel_mot.training import optimizer, start
from bagel_mot.training.breakdown import tokens_by_kind
from bagel_mot.training.checkpoints import STATE_FILE, STATE_FOLDER, load_latest
from bagel_mot.training.loop import train
from bagel_mot.training.objective import add_noise, compute_losses, draw_timesteps, loss_counts
from bagel_mot.training.optimizer import Optimizers
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.run import Run, backward, step_seed
from bagel_mot.training.tasks import bagel as unified
from bagel_mot.training.tasks.bagel import BagelBatch, BagelTask

Make = Callable[..., BagelRecipe]


def _batch(task: BagelTask, rows: list[list[IndexedSample]]) -> BagelBatch:
    return task.to_device(lay_out(rows, task.spec, task.recipe.pack.und, task.recipe.pack.gen))


def _sample(task: BagelTask, index: int) -> IndexedSample:
    made = task.workers.submit(GroupItem(0, KeyedItem(index, None))).result()
    assert isinstance(made, IndexedSample)
    return made


def _totals(task: BagelTask, packs: list[BagelBatch]) -> dict[str, float]:
    return {name: sum(task.counts(pack)[name] for pack in packs) for name in ("ce", "mse")}


def test_accumulation_is_one_large_pack(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    task = BagelTask(recipe(pack={"rows": 4}, ce_weight=0.5))
    raw = task.pack_stream(0, 1).next_rows()
    whole = _batch(task, raw)
    halves = [_batch(task, raw[:2]), _batch(task, raw[2:])]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(whole.values.latents.shape, generator=generator)
    times = torch.rand(len(whole.layout.latent_grids), generator=generator)
    cut, images = len(halves[0].values.latents), len(halves[0].layout.latent_grids)
    torch.nn.init.normal_(task.module.decoder.lm_head.weight, std=0.1)
    torch.nn.init.normal_(task.module.latent_out.weight, std=0.1)
    # The halves must count differently: else a mean of means would do.
    assert task.counts(halves[0])["ce"] != task.counts(halves[1])["ce"]
    given = [(times, noise), (times[:images], noise[:cut]), (times[images:], noise[cut:])]
    monkeypatch.setattr(unified, "add_noise", lambda layout, values, t, n: add_noise(layout, values, *given.pop(0)))
    gradients, means = [], []
    for packs in ([whole], halves):
        task.module.zero_grad()
        found = backward(task, packs, range(len(packs)), _totals(task, packs), generator, torch.float32)
        means.append({name: float(value) for name, value in found.items()})
        gradients.append(torch.cat([p.grad.flatten() for p in task.module.parameters() if p.grad is not None]))
    assert given == []
    assert means[0] == pytest.approx(means[1], rel=1e-4)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("task_name", "absent"),
    [("draw", {"vit", "text loss"}), ("ask", {"latents"}), ("edit", {"text loss"}), ("think_answer", {"latents"})],
)
def test_packs_without_some_kind_of_token_train(recipe: Make, task_name: str, absent: set[str]) -> None:
    made = recipe(data={"mix": {task_name: 1.0}}, dropout={"text": 0.0, "vit": 0.0, "vae": 0.0})
    task = BagelTask(made)
    before = {name: p.clone() for name, p in task.module.named_parameters()}
    optimizers = Optimizers(task.module.named_parameters(), made.optimizer)
    generator = torch.Generator().manual_seed(0)
    stream = task.pack_stream(0, 1)
    for _ in range(2):
        batch = task.to_device(stream.next_batch())
        layout = batch.layout
        kinds = {"vit": layout.vit_slots, "text loss": layout.ce_slots, "latents": layout.latent_slots}
        assert {name for name, slots in kinds.items() if slots.numel() == 0} == absent
        means = backward(task, [batch], [0], _totals(task, [batch]), generator, torch.float32)
        assert {name for name, mean in means.items() if mean > 0} == ({"ce"} if "latents" in absent else {"mse"})
        # So every moment decays in every step, and an update does not depend on which pack came before.
        assert [name for name, p in task.module.named_parameters() if p.grad is None] == []
        assert torch.isfinite(optimizers.step(1.0))
    moved = {name for name, p in task.module.named_parameters() if not torch.equal(p, before[name])}
    assert any(".und." in name for name in moved)
    assert any(".gen." in name for name in moved) == ("latents" not in absent)


def test_a_pack_of_one_sample_trains(recipe: Make) -> None:
    task = BagelTask(recipe())
    batch = _batch(task, [[_sample(task, 0)], []])
    sums = task.losses(batch, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(value) for value in sums.values())


def test_a_sample_gives_the_same_loss_in_any_company(recipe: Make) -> None:
    """Neighbours in a row, padding, and rows do not touch a sample's predictions."""
    task = BagelTask(recipe(pack={"rows": 1, "und": 600, "gen": 400}))
    torch.nn.init.normal_(task.module.decoder.lm_head.weight, std=0.1)
    torch.nn.init.normal_(task.module.latent_out.weight, std=0.1)
    raw = task.pack_stream(0, 1).next_rows()
    samples = raw[0][:4]

    def predictions(rows: list[list[IndexedSample]]) -> tuple[Tensor, Tensor]:
        batch = _batch(task, rows)
        layout, values = batch.layout, batch.values
        times = torch.full((len(layout.latent_grids),), 0.5)
        noise = torch.ones_like(values.latents)
        noised = add_noise(layout, values, times, noise)
        losses = compute_losses(task.module, noised, MaskedAttention(layout))
        return losses.ce.detach(), losses.mse.detach()

    together = predictions([samples])
    alone = [predictions([[sample]]) for sample in samples]
    for which in (0, 1):
        joined = torch.cat([part[which] for part in alone])
        assert torch.allclose(together[which], joined, rtol=1e-4, atol=1e-5)


def test_a_stage_that_was_not_trained_yet_is_named_and_never_looked_for_on_the_hub(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(text: object, *_: object, **__: object) -> Path:
        raise AssertionError(f"the hub was asked for {text}")

    monkeypatch.setattr(loading, "download", asked)
    monkeypatch.setattr(start, "described", asked)
    monkeypatch.chdir(tmp_path)
    first = r"there is no checkpoint in runs/mini-autoencoder-wide yet: train it first, with `bagel train mini-auto"
    with pytest.raises(CheckpointError, match=first):
        BagelTask(recipe(autoencoder="runs/mini-autoencoder-wide", output=Path("runs/mine")))
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in own/first: train it first, or give another"):
        BagelTask(recipe(model=None, autoencoder=None, init="own/first", output=Path("own/second")))
    (tmp_path / "runs" / "mini-autoencoder-wide").mkdir(parents=True)  # begun, and nothing saved yet
    with pytest.raises(CheckpointError, match=first):
        BagelTask(recipe(autoencoder="runs/mini-autoencoder-wide", output=Path("elsewhere")))
    with pytest.raises(AssertionError, match="asked for owner/model"):
        BagelTask(recipe(model=None, autoencoder=None, init="owner/model", output=Path("own/second")))


def test_a_damaged_start_is_named_at_once(recipe: Make, tmp_path: Path) -> None:
    first = BagelTask(recipe())
    first.module.connector.fc1.weight.data[0, 0] = float("nan")
    first.write_weights(tmp_path / "damaged", first.module.state_dict())
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: connector\.fc1\.weight holds infinite values"):
        BagelTask(recipe(model=None, autoencoder=None, init=str(tmp_path / "damaged"), output=tmp_path / "second"))


def test_a_run_starts_from_whatever_names_a_checkpoint(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = BagelTask(recipe(timestep_shift=2.0))
    run = tmp_path / "first"
    for step in (2, 4):  # what is in the newest checkpoint counts
        folder = run / f"step-{step:08d}"
        weights = {name: torch.full_like(p, step) for name, p in first.module.named_parameters()}
        first.write_weights(folder, {**first.module.state_dict(), **weights})
        (folder / STATE_FILE).write_bytes(b"")
    monkeypatch.setattr(loading, "MINI_FOLDER", Path(shutil.copytree(folder, tmp_path / "embedded")))

    def started(**changes: object) -> BagelTask:
        return BagelTask(recipe(model=None, output=tmp_path / "second", **changes))

    for name in ("mini", str(folder), str(run)):
        task = started(init=name, autoencoder=None)
        assert {float(p.detach().mean()) for p in task.module.parameters()} == {4.0}
        assert task.config == first.config
    assert started(init=str(run), autoencoder="mini").autoencoder.config == first.autoencoder.config
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        started(init=str(tmp_path / "nowhere"))


def test_a_run_takes_over_another_autoencoder(recipe: Make, tmp_path: Path) -> None:
    first = BagelTask(recipe())
    folder = tmp_path / "first"
    first.write_weights(folder, first.module.state_dict())
    (folder / DEFAULTS_FILE).write_text('{"generate": {"num_timesteps": 25}, "edit": {"cfg_image_scale": 1.5}}')

    def autoencoder(name: str, **changes: Any) -> str:
        vae = replace(first.config.vae, **changes)
        save_checkpoint(tmp_path / name, BagelConfig(vae=vae), autoencoder=Autoencoder(vae).state_dict())
        return str(tmp_path / name)

    def begin(where: str) -> BagelTask:
        return BagelTask(recipe(model=None, init=str(folder), autoencoder=where, output=tmp_path / "second"))

    task = begin(autoencoder("scaled", scale_factor=0.7, shift_factor=0.05, ch_mult=(1, 1, 1, 2)))
    second = tmp_path / "second" / "step-00000002"
    task.write_weights(second, task.module.state_dict())
    found = load_checkpoint(second)
    assert found.config.vae == task.autoencoder.config
    assert (found.config.vae.scale_factor, found.config.vae.ch_mult) == (0.7, (1, 1, 1, 2))
    assert (second / DEFAULTS_FILE).read_bytes() == (folder / DEFAULTS_FILE).read_bytes()
    with pytest.raises(RecipeError, match="has 6 latent channels, one for 8 pixels a side; the model of .* 4 and 8"):
        begin(autoencoder("other", z_channels=6))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_conditions_are_left_out_as_often_whatever_the_task(recipe: Make, seed: int) -> None:
    task = BagelTask(recipe(seed=seed, data={"mix": {"draw": 1.0, "edit": 1.0}}))
    left_out: dict[bool, list[bool]] = {True: [], False: []}
    for index in range(600):
        document = task.source(index)
        edits = any(isinstance(part, ImagePart) and not part.target for part in document)
        sample = _sample(task, index)
        texts = sum(isinstance(segment, TextSegment) for segment in sample.segments)
        left_out[edits].append(texts == 0)
    for shares in left_out.values():
        assert 0.04 < sum(shares) / len(shares) < 0.17


def test_the_timestep_shift_is_that_of_the_recipe_or_of_the_checkpoint(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw(images: int, shift: float, generator: torch.Generator) -> Tensor:
        drawn.append(shift)
        return draw_timesteps(images, shift, generator)

    monkeypatch.setattr(unified, "draw_timesteps", draw)

    def shift_of(**changes: object) -> float:
        task = BagelTask(recipe(**changes))
        task.losses(task.to_device(task.pack_stream(0, 1).next_batch()), torch.Generator().manual_seed(0))
        task.write_weights(folder := tmp_path / f"{len(drawn)}", task.module.state_dict())
        assert load_config(folder).timestep_shift == drawn[-1]
        return drawn[-1]

    assert shift_of() == 1.0
    assert shift_of(timestep_shift=2.0) == 2.0
    second = {"model": None, "autoencoder": None, "init": str(tmp_path / "2"), "output": tmp_path / "other"}
    assert shift_of(**second) == 2.0
    assert shift_of(**second, timestep_shift=4.0) == 4.0


def test_the_wrong_recipe_is_refused(recipe: Make) -> None:
    with pytest.raises(RecipeError, match="either init"):
        recipe(init="somewhere")
    with pytest.raises(RecipeError, match="a new model needs autoencoder"):
        recipe(autoencoder=None)


# Operations for which the host waits for a device: to read a value, or to learn how large a result is.
WAITING = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
    "aten::unique_consecutive", "aten::_unique2", "aten::bincount",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts what the host would wait for, were the tensors on a GPU; the counters of AdamW are always on the host."""

    def __init__(self, on_host: Callable[[], set[int]]) -> None:
        super().__init__()
        self.on_host, self.found = on_host, []  # type: ignore[var-annotated]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        indices = args[1] if name in ("aten::index", "aten::index_put_", "aten::index_put") else ()
        by_mask = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        unsized = name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None
        if (name in WAITING or by_mask or unsized) and id(args[0]) not in self.on_host():
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing_until_it_is_reported(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(packs_per_step=2, ce_reweight=True, attention="sdpa", parallel={"activation_checkpoint": "full"})
    run = Run(made, BagelTask)
    for name in ("tolist", "cpu", "numpy"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, *a, r=real, n=name: (seen.append(n), r(self, *a))[1])
    seen: list[str] = []
    run.advance()  # everything is made that is made once
    packs = run.task.prefetcher.next_batch()
    counts = iter([loss_counts(pack.layout, True) for pack in packs])
    kinds = iter([tokens_by_kind(pack.layout) for pack in packs])
    monkeypatch.setattr(run.task.prefetcher, "next_batch", lambda: packs)
    # Both are made on the host, before the pack leaves it.
    monkeypatch.setattr(unified, "loss_counts", lambda *_: next(counts))
    monkeypatch.setattr(unified, "tokens_by_kind", lambda *_: next(kinds))
    monkeypatch.setattr(optimizer, "_surely_within", lambda *_: False)  # as on a device
    seen.clear()

    def on_host() -> set[int]:
        states = (state for one in run.optimizers.optimizers for state in one.state.values())
        return {id(state["step"]) for state in states if "step" in state}

    with Waits(on_host) as waits:
        run.advance()
        assert waits.found == []
        assert seen == []
        run.settle()
    assert seen == ["tolist"]  # all numbers of all steps, at once
    assert {"ce", "mse", "grad_norm", "lr"} <= run.averages.take().keys()
    run.task.close()


def test_noise_is_a_steps_own_whatever_came_before(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """So exact resuming needs no random state."""
    drawn: dict[int, list[Tensor]] = {}

    def draw(images: int, shift: float, generator: torch.Generator) -> Tensor:
        stream = len(drawn.get(run.step, []))
        assert generator.initial_seed() == step_seed(5, run.step, stream)
        drawn.setdefault(run.step, []).append(times := draw_timesteps(images, shift, generator))
        return times

    monkeypatch.setattr(unified, "draw_timesteps", draw)
    run = Run(recipe(packs_per_step=2), BagelTask)
    for _ in range(2):
        run.advance()
    run.task.close()
    [[a, b], [c, d]] = drawn.values()
    assert len({tuple(times.tolist()) for times in (a, b, c, d)}) == 4


DEFAULTS = {"generate": {"num_timesteps": 7, "size": [32, 48]}, "ask": {"temperature": 0.9}}


def _with_defaults(tmp_path: Path, golden: Any) -> Path:
    folder = Path(shutil.copytree(golden.checkpoint, tmp_path / "given"))
    (folder / DEFAULTS_FILE).write_text(json.dumps(DEFAULTS))
    (folder / "generation_config.json").write_text('{"top_k": 1}')
    return folder


def test_fine_tuning_leaves_a_checkpoints_own_defaults(recipe: Make, tmp_path: Path, golden: Any) -> None:
    folder = _with_defaults(tmp_path, golden)
    before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    given = {"model": None, "autoencoder": None, "init": str(folder), "trainable": ["connector.*"]}
    task = BagelTask(recipe(**given))
    transform = read_defaults(folder, task.config).vae_transform
    assert task.builder.vae_transform == transform  # images are resized as the checkpoint does, not the data
    task.write_weights(after := tmp_path / "after", task.module.state_dict())
    written = {path.name for path in after.glob("*.json")}
    for name in (DEFAULTS_FILE, "generation_config.json"):
        assert (after / name).read_bytes() == before[name]
    assert PREVIEW_FILE not in {path.name for path in after.iterdir()}
    assert written <= before.keys()
    assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == before

    changed = recipe(
        **given, defaults={"generate": {"size": [64, 64]}, "vae_transform": {"max_size": 64, "min_size": 32}}
    )
    task = BagelTask(changed)
    assert (task.builder.vae_transform.max_size, task.builder.vae_transform.min_size) == (64, 32)
    task.write_weights(after, task.module.state_dict())
    assert json.loads((after / DEFAULTS_FILE).read_text()) == {
        "generate": {"num_timesteps": 7, "size": [64, 64]},
        "ask": {"temperature": 0.9},
        "vae_transform": {"max_size": 64, "min_size": 32},
    }


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"generate": {"size": [50, 50]}}, "the trained model's bagel_defaults.json: size is 50×50"),
        ({"generates": {}}, "the trained model's bagel_defaults.json must hold an object with no keys but"),
    ],
)
def test_defaults_that_no_model_could_have_are_refused(
    recipe: Make, tmp_path: Path, golden: Any, defaults: dict[str, Any], message: str
) -> None:
    init = str(_with_defaults(tmp_path, golden))
    with pytest.raises(RecipeError, match=message):
        BagelTask(recipe(model=None, autoencoder=None, init=init, defaults=defaults))


def test_fine_tuning_says_what_the_new_data_teach(
    recipe: Make, tmp_path: Path, golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _with_defaults(tmp_path, golden)
    (folder / SCOPE_FILE).write_text("about: photographs of dogs")
    given = {"model": None, "autoencoder": None, "init": str(folder), "trainable": ["connector.*"]}
    task = BagelTask(recipe(**given))
    task.write_weights(tmp_path / "after", task.module.state_dict())
    scope = read_defaults(tmp_path / "after", task.config).scope
    assert scope is not None
    assert "mushroom" in scope.about
    monkeypatch.setattr(MiniSource, "scope", Source.scope)  # other data: what they teach is not known
    task = BagelTask(recipe(**given))
    task.write_weights(tmp_path / "other", task.module.state_dict())
    assert not (tmp_path / "other" / SCOPE_FILE).exists()


def test_a_training_state_is_converted_to_the_official_layout(recipe: Make, tmp_path: Path) -> None:
    """The averages, in float32 where the files beside them have bfloat16; what is frozen comes from these."""
    made = recipe(steps=2, save_every=2, trainable=["language_model.*"], save_async=False)
    folder = train(made, BagelTask, stop_after=1)
    state = load_latest(made.output)
    assert state is not None
    source = open_checkpoint(folder / STATE_FOLDER)
    assert set(source.names()) == set(open_checkpoint(folder).names())
    name = "decoder.layers.0.und.q.weight"
    assert torch.equal(source.read(official_name(name)), state[f"ema.{name}"])  # type: ignore[arg-type]
    convert(folder / STATE_FOLDER, tmp_path / "official", "bf16")
    found, expected = load_checkpoint(tmp_path / "official"), load_checkpoint(folder)
    assert found.config == expected.config
    pairs = zip(found.model.state_dict().items(), expected.model.state_dict().values(), strict=True)
    assert [name for (name, tensor), other in pairs if not torch.equal(tensor, other)] == []
    (folder / STATE_FOLDER / ".metadata").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="training_state could not be read as a training state"):
        open_checkpoint(folder / STATE_FOLDER)
