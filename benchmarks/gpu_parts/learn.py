"""What does `mini` reach at 128×128 pictures on a GPU? In calls that each end in time and go on where the last stopped.

First sizes of the model are measured for two minutes; then the autoencoder is trained, then the unified model, then it
is evaluated. What has been decided and how far it is stands in `state.json` in the folder of the work.
"""

from __future__ import annotations

import gc
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bagel_mot.bench.machine import machine
from bagel_mot.bench.roofline import ForwardTokens, flops, roofline
from bagel_mot.checkpoint.convert import convert
from bagel_mot.errors import BagelError
from bagel_mot.placement.rates import synchronize
from bagel_mot.training.checkpoints import checkpoint_folders
from bagel_mot.training.packaged import find_recipe
from bagel_mot.training.profiles import load_recipe
from bagel_mot.training.recipe import AutoencoderRecipe, BagelRecipe
from bagel_mot.training.run import Run
from bagel_mot.training.tasks.autoencoder import AutoencoderTask
from bagel_mot.training.tasks.bagel import BagelTask
from gpu_parts.common import failure, seconds_of

ROOT = Path(__file__).parents[2]
RECIPES = {"autoencoder": "mini-gpu-autoencoder", "model": "mini-gpu"}
EMBEDDED_SCORES = ROOT / "benchmarks" / "results" / "eval-mini.json"
SHARD = 15 * 2**20
TOKENS_WANTED = 200e6
"""Which a model should see: three times what the embedded one did. A larger model that sees fewer is left out."""
TO_STOP = 20.0  # seconds that a training has, when its time is over, to end its step and save
SIZES = ((256, 8), (384, 12), (512, 12), (768, 16))  # (hidden size, layers)


@dataclass(frozen=True)
class Plan:
    """How large everything is, and how many seconds it may take in all.

    Attributes:
        autoencoder, model: overrides of the two recipes.
        sizes: (hidden size, layers) of the models that are measured.
        warm, measured: seconds before and while a size is measured.
    """

    autoencoder: dict[str, Any]
    model: dict[str, Any]
    sizes: tuple[tuple[int, int], ...]
    warm: float
    measured: float
    autoencoder_seconds: float
    model_seconds: float
    evaluation: tuple[str, ...]
    tokens_wanted: float


FULL = Plan(
    autoencoder={},
    model={},
    sizes=SIZES,
    warm=12.0,
    measured=12.0,
    autoencoder_seconds=300.0,
    model_seconds=960.0,
    evaluation=("--items", "100", "--batch", "100"),
    tokens_wanted=TOKENS_WANTED,
)


def smoke_plan() -> Plan:
    """The same in miniature: a few steps at 64×64 pictures."""
    small = {"compile": "false", "precision": "float32"}
    pack = {"pack.rows": 2, "pack.und": 200, "pack.gen": 100, "pack.buffer": 8}
    vit = "{hidden_size: 32, num_layers: 1, num_heads: 2, intermediate_size: 64, patch_size: 16, image_size: 128}"
    return Plan(
        autoencoder={**small, "data.side": 64, "batch_size": 2},
        model={**small, **pack, "data.side": 64, "model.vit": vit},
        sizes=((32, 1), (64, 2)),
        warm=0.0,
        measured=0.5,
        autoencoder_seconds=4.0,
        model_seconds=6.0,
        evaluation=("--items", "1", "--rows", "draw/one_thing", "--rows", "edit/recolour"),
        tokens_wanted=0.0,
    )


def measure(
    device: torch.device, *, smoke: bool, seconds: float, work: Path, export: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Goes on for at most `seconds`.

    Args:
        device: where.
        smoke: in miniature.
        seconds: for this call; the work may take several.
        work: folder of state and runs.
        export: folder for the newest weights of this call, in files of at most 15 MiB; replaced.
        say: told what is done.
    """
    end = time.monotonic() + seconds
    plan = smoke_plan() if smoke else FULL
    state_file = work / "state.json"
    work.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = json.loads(state_file.read_text()) if state_file.exists() else {}

    def keep() -> None:
        temporary = state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=2))
        temporary.replace(state_file)

    if "sizes" not in state:
        state |= _choose(plan, device, work, say)
        keep()
    overrides = {
        "autoencoder": {**plan.autoencoder, "steps": state["autoencoder_steps"], "output": work / "autoencoder"},
        "model": {**plan.model, **state["model"], "autoencoder": work / "autoencoder", "output": work / "model"},
    }
    for stage, values in overrides.items():
        reached = _reached(work / stage)
        if reached < int(values["steps"]) and end - time.monotonic() > TO_STOP:
            say(f"{stage}: step {reached} of {values['steps']}")
            _train(stage, {**values, "device": device}, end - time.monotonic() - TO_STOP)
        state[f"{stage}_reached"] = _reached(work / stage)
        keep()
        if state[f"{stage}_reached"] < int(values["steps"]):
            break
    else:
        if "scores" not in state and end > time.monotonic():
            say("evaluation")
            scores = _evaluate(plan, device, work, end)
            state |= {} if scores is None else {"scores": scores}
            keep()
    newest = checkpoint_folders(work / "model")
    if export is not None and newest:
        shutil.rmtree(export, ignore_errors=True)
        convert(newest[-1], export, "bf16", shard_size=SHARD)
    return {"machine": machine(device), **state, "summary": _summary(state)}


def _choose(plan: Plan, device: torch.device, work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures every size, and takes the largest that sees enough tokens in its time."""
    rows = []
    for hidden, layers in plan.sizes:
        say(f"hidden size {hidden}, {layers} layers")
        try:
            rows.append(_measure_size(plan, device, work, hidden, layers))
        except Exception as error:  # whatever one size meets must not end the others
            rows.append({"hidden_size": hidden, "layers": layers, "left_out": failure(error)})
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    fit = [row for row in rows if "left_out" not in row]
    if not fit:
        raise BagelError(f"no size of the model can be trained here: {rows[0]['left_out']}")
    enough = [row for row in fit if row["tokens_per_second"] * plan.model_seconds >= plan.tokens_wanted]
    chosen = enough[-1] if enough else fit[0]
    steps = max(int(chosen["steps_per_second"] * plan.model_seconds), 2)
    schedule = {"schedule.warmup": min(200, steps // 4), "schedule.decay": steps // 2, "save_every": max(steps // 6, 1)}
    say("autoencoder")
    images = _measure_autoencoder(plan, device, work)
    return {
        "sizes": rows,
        "chosen": {key: chosen[key] for key in ("hidden_size", "layers")},
        "autoencoder_steps": max(int(images * plan.autoencoder_seconds), 2),
        "model": {**chosen["overrides"], "steps": steps, **schedule, "sample_every": max(steps // 2, 1)},
    }


def _shape(hidden: int, layers: int) -> dict[str, Any]:
    decoder = {"num_layers": layers, "hidden_size": hidden, "intermediate_size": 3 * hidden}
    heads = max(hidden // 64, 2)
    decoder |= {"num_heads": heads, "num_kv_heads": 2 if heads % 2 == 0 else 1}
    return {f"model.decoder.{key}": value for key, value in decoder.items()}


def _measure_size(plan: Plan, device: torch.device, work: Path, hidden: int, layers: int) -> dict[str, Any]:
    """Tokens per second of whole steps, data included, and their share of the rate of the matmuls alone."""
    shape = _shape(hidden, layers)
    # The embedded autoencoder stands in for the one that is not trained yet: its shape is the same.
    recipe = _recipe(
        "model", {**plan.model, **shape, "autoencoder": "mini", "output": work / "probe", "device": device}
    )
    assert isinstance(recipe, BagelRecipe)
    run = Run(recipe, BagelTask)
    try:
        steps, tokens, seconds = _pace(run, plan, device)
        model, pack = run.task.module, recipe.pack
        # The decoder's matmuls over all slots, padding too: attention, the ViT and the optimiser count as time only.
        work_done = ForwardTokens(und=pack.rows * pack.und, gen=pack.rows * pack.gen, backward=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            alone = roofline(model, work_done)
            alone()
            rate = flops(model, work_done) / min(seconds_of(alone, device) for _ in range(3))
    finally:
        run.task.close()
    return {
        "hidden_size": hidden,
        "layers": layers,
        "parameters": sum(p.numel() for p in model.parameters()),
        "overrides": shape,
        "steps_per_second": steps / seconds,
        "tokens_per_second": tokens / seconds,
        "share_of_matmul_rate": flops(model, work_done) * steps / seconds / rate,
        "matmul_flops_per_second": rate,
    }


def _measure_autoencoder(plan: Plan, device: torch.device, work: Path) -> float:
    """Steps per second."""
    recipe = _recipe("autoencoder", {**plan.autoencoder, "output": work / "probe", "device": device})
    assert isinstance(recipe, AutoencoderRecipe)
    run = Run(recipe, AutoencoderTask)
    try:
        steps, _, seconds = _pace(run, plan, device)
    finally:
        run.task.close()
    return steps / seconds


def _pace(run: Run, plan: Plan, device: torch.device) -> tuple[int, int, float]:
    """(steps, tokens, seconds) after a while of warming up: compilation, and drawing what is kept drawn."""
    begun = time.monotonic()
    while True:
        run.advance()
        if time.monotonic() - begun >= plan.warm:
            break
    synchronize(device)
    begun, steps, tokens = time.monotonic(), 0, 0
    while steps == 0 or time.monotonic() - begun < plan.measured:
        tokens += run.advance()
        steps += 1
    synchronize(device)
    return steps, tokens, time.monotonic() - begun


def _recipe(stage: str, values: dict[str, Any]) -> AutoencoderRecipe | BagelRecipe:
    return load_recipe(find_recipe(RECIPES[stage]), [f"{key}={value}" for key, value in values.items()])


def _reached(run: Path) -> int:
    folders = checkpoint_folders(run)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def _train(stage: str, values: dict[str, Any], seconds: float) -> None:
    """As a user would, in a process of its own; told to stop, which saves, when its time is over."""
    command = [sys.executable, "-m", "bagel_mot", "train", RECIPES[stage]]
    training = subprocess.Popen([*command, *(f"{key}={value}" for key, value in values.items())], cwd=ROOT)
    try:
        training.wait(seconds)
    except subprocess.TimeoutExpired:
        training.send_signal(signal.SIGTERM)
        try:
            training.wait(3 * TO_STOP)
        except subprocess.TimeoutExpired:  # it may be compiling; what it has saved before is there
            training.kill()
            training.wait()
        return
    if training.returncode:
        raise BagelError(f"the training of the {stage} failed with status {training.returncode}")


def _evaluate(plan: Plan, device: torch.device, work: Path, end: float) -> dict[str, Any] | None:
    """Shares by row; None if there was no time for all rows: they stay, and the next call goes on with them."""
    scores = work / "eval.json"
    checkpoint = checkpoint_folders(work / "model")[-1]
    command = [
        sys.executable,
        "-m",
        "bagel_mot",
        "eval",
        "mini",
        "--checkpoint",
        str(checkpoint),
        "--device",
        str(device),
    ]
    try:
        subprocess.run([*command, *plan.evaluation, "--json", str(scores)], check=True, cwd=ROOT,
                       timeout=max(end - time.monotonic(), 1))  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    return {name: row["share"] for name, row in json.loads(scores.read_text())["rows"].items()}


def _summary(state: dict[str, Any]) -> dict[str, Any]:
    summary = {key: state[key] for key in ("chosen", "autoencoder_reached", "model_reached") if key in state}
    scores = state.get("scores")
    if scores:
        embedded = {name: row["share"] for name, row in json.loads(EMBEDDED_SCORES.read_text())["rows"].items()}
        shared = [name for name in scores if name in embedded]
        summary["mean of the rows"] = statistics.fmean(scores[name] for name in shared)
        summary["of the embedded model"] = statistics.fmean(embedded[name] for name in shared)
    return summary
