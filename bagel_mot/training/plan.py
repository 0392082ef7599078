"""The plan of a run, before anything is loaded: parameters, tokens a step, memory, steps an epoch."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import torch

from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.shapes import autoencoder_shapes, model_shapes
from bagel_mot.config import BagelConfig
from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import SampleBuilder
from bagel_mot.data.draws import RandomDraws
from bagel_mot.data.packer import AnyPackConfig, PackConfig
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.supply import RowSupply
from bagel_mot.errors import RecipeError
from bagel_mot.files import size_text
from bagel_mot.inference.loading import choose_device
from bagel_mot.parallel.config import Degrees
from bagel_mot.placement.estimate import MARGIN, weight_bytes
from bagel_mot.placement.system_memory import free_memory
from bagel_mot.placement.training_memory import TrainingMemory, TrainingWeights, TrainingWork, training_memory
from bagel_mot.training.lora import base_precision
from bagel_mot.training.metrics import METRICS_FILE
from bagel_mot.training.objective import CE_CHUNK, takes_whole_mask
from bagel_mot.training.recipe import AnyRecipe, BagelRecipe, compute_dtype
from bagel_mot.training.sizes import encoded_together, most_tokens, pack_config, slots_to_share
from bagel_mot.training.start import StartShape, start_shape
from bagel_mot.training.trainable import matching

_COUNTED_ROWS = 16  # rows of each data set whose tokens say how many samples a pack has
_FROZEN_ITEMSIZE = 4  # frozen parameters beside trained ones stay in float32


@dataclass(frozen=True)
class TrainingPlan:
    """A run before it starts.

    Attributes:
        recipe: its recipe.
        trained, parameters: the numbers of parameters that train, and of all.
        pack: the size of a pack.
        packs: packs of a step.
        processes: processes of the run.
        memory: predicted memory of each process, by part.
        free: bytes that each process may take.
        rows: rows of the data; None where they are not counted anywhere, or are drawn without end.
        samples: samples of a pack, from the first rows; None where they cannot be made yet.
        seconds: seconds of a step that this run took before; None before its first report.
    """

    recipe: BagelRecipe
    trained: int
    parameters: int
    pack: AnyPackConfig
    packs: int
    processes: int
    memory: TrainingMemory
    free: int
    rows: int | None
    samples: float | None
    seconds: float | None

    @property
    def tokens(self) -> int:
        """Tokens of a step, at most."""
        return self.packs * self.pack.tokens

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps in which every row is met once, about; None where rows or samples are not counted."""
        if self.rows is None or self.samples is None:
            return None
        own = 1 / (1 + self.recipe.replay.weight) if self.recipe.replay is not None else 1.0
        return max(1, round(self.rows / (self.samples * self.packs * own)))

    @property
    def fits(self) -> bool:
        """Whether the predicted memory is there."""
        return self.memory.total <= self.free * (1 - MARGIN)

    def sentence(self) -> str:
        """The memory that it takes, and that there is."""
        each = "each process" if self.processes > 1 else "the machine"
        named = f"profile {self.recipe.profile}" if self.recipe.profile else "this recipe"
        return f"{named} needs {size_text(self.memory.total)}, and {each} has {size_text(self.free)}"


@dataclass(frozen=True)
class MachineShape:
    """The machine of a run.

    Attributes:
        gpus: whether the processes have a GPU each.
        processes: the number of processes.
        memory: bytes that each process may take.
    """

    gpus: bool
    processes: int
    memory: int

    @property
    def words(self) -> str:
        """The machine in words."""
        kind = "a GPU" if self.gpus else "no GPU"
        each = f"{self.processes} processes with {kind} each" if self.processes > 1 else f"one process with {kind}"
        return f"{each} and {size_text(self.memory)}"

    def suits(self, recipe: AnyRecipe) -> bool:
        """Whether a recipe is made for so many processes, with or without GPUs. One that is made for a single process
        without a GPU serves several as well: each takes a pack.
        """
        if (recipe.device == "cpu") == self.gpus:
            return False
        parallel = recipe.parallel
        several = parallel.data_parallel_shard_degree > 1 or parallel.data_parallel_replicate_degree > 1
        if not several:
            return self.processes == 1 or not self.gpus
        try:
            parallel.degrees(self.processes)
        except RecipeError:
            return False
        return True


def this_machine(memory: int | None = None, processes: int | None = None) -> MachineShape:
    """This machine, or one like it.

    Args:
        memory: bytes of each GPU of an imagined machine; by default what this machine has free.
        processes: the number of processes; by default that of this launch.
    """
    count = processes or int(os.environ.get("WORLD_SIZE", "1"))
    if memory is not None:
        return MachineShape(True, count, memory)
    device = choose_device("auto")
    return MachineShape(device.type != "cpu", count, free_memory(device) // (count if device.type == "cpu" else 1))


def plan(recipe: BagelRecipe, machine: MachineShape) -> TrainingPlan:
    """The plan of a run.

    Args:
        recipe: the recipe.
        machine: the machine.

    Raises:
        CheckpointError: there is no such checkpoint to start from.
        RecipeError: the parallel degrees do not fit the processes or the model, or `trainable` matches nothing.
        DataError: there are no data, or a file cannot be used.
    """
    processes, memory = machine.processes, machine.memory
    degrees = recipe.parallel.degrees(processes)
    on_cpu = not machine.gpus or recipe.device == "cpu"
    start = start_shape(recipe)
    pack = pack_config(recipe.pack, start.vae, start.vit)
    packs = recipe.packs_per_step or degrees.data
    degrees.check_streams(packs)
    degrees.check_decoder(start.config.decoder, slots_to_share(pack, degrees.context))
    if recipe.validation is not None:
        recipe.validation.data.open(0)
    trained = trained_parameters(recipe, start.config)
    total = sum(shape.numel() for name, shape in model_shapes(start.config).items() if _is_parameter(name))
    work = _work(recipe, start, pack, degrees, packs, on_cpu)
    weights = _weights(recipe, start.config, trained, degrees, on_cpu)
    return TrainingPlan(
        recipe,
        sum(trained.values()),
        total + (sum(trained.values()) if recipe.adapters is not None else 0),
        pack,
        packs,
        processes,
        training_memory(start.config, work, weights),
        memory,
        _rows(recipe),
        samples_per_pack(recipe, start, pack),
        _seconds(recipe),
    )


def trained_parameters(recipe: BagelRecipe, config: BagelConfig) -> dict[str, int]:
    """The number of parameters that train, by the name of each tensor in the network; of adapters by the names of the
    matrices that they change.

    Raises:
        RecipeError: a pattern of `trainable` matches nothing.
    """
    shapes = {name: shape for name, shape in model_shapes(config).items() if _is_parameter(name)}
    if (adapters := recipe.adapters) is None:
        chosen = {
            name for pattern in recipe.trainable for name in matching(pattern, shapes, official_name, "trainable")
        }
        return {name: shape.numel() for name, shape in shapes.items() if name in chosen}
    numbers = {}
    for expert in adapters.experts:
        rank, _, matrices = adapters.of(expert)
        for layer in range(config.decoder.num_layers):
            for matrix in matrices:
                name = f"decoder.layers.{layer}.{expert}.{matrix}.weight"
                rows, columns = shapes[name]
                numbers[name] = rank * (rows + columns) + (rows if adapters.use_dora else 0)
    return numbers


def _is_parameter(name: str) -> bool:
    """Whether a tensor of the network is a parameter: not one of the fixed position tables."""
    return name not in ("latent_pos_embed", "vit_pos_embed")


def _work(
    recipe: BagelRecipe, start: StartShape, pack: AnyPackConfig, degrees: Degrees, packs: int, on_cpu: bool
) -> TrainingWork:
    """The work of one process: context parallelism divides the slots, tensor parallelism is left out of account."""
    dtype, share = compute_dtype(recipe.precision, "cpu" if on_cpu else "cuda"), degrees.context
    if isinstance(pack, PackConfig):
        rows, und, gen = pack.rows, pack.rows * pack.und, pack.rows * pack.gen
        image = most_tokens(start.vit)
        seen = pack.rows * (pack.und // (image + 2)) * image
    else:  # the kinds of tokens are not known before the samples are there
        rows, und = 1, pack.tokens // 2
        gen, seen = pack.tokens - und, und
    trains_vision = recipe.adapters is None and any(
        name.startswith("vit.") for name in trained_parameters(recipe, start.config)
    )
    side = start.vae.max_size
    return TrainingWork(
        rows=rows,
        und=und // share,
        gen=gen // share,
        patches=seen,
        targets=und // share,
        encoded_pixels=encoded_together(side * side) * side * side,
        dtype=dtype,
        chunk=CE_CHUNK,
        checkpointing=recipe.parallel.activation_checkpoint,
        masked=takes_whole_mask(recipe.attention, on_cpu=on_cpu),
        vit_trains=trains_vision,
        accumulates=packs > degrees.data,
        stream=dtype if recipe.adapters is not None else torch.float32,
        on_cpu=on_cpu,
    )


def _weights(
    recipe: BagelRecipe, config: BagelConfig, trained: Mapping[str, int], degrees: Degrees, on_cpu: bool
) -> TrainingWeights:
    """The weights that one process holds."""
    dtype = compute_dtype(recipe.precision, "cpu" if on_cpu else "cuda")
    shapes = {name: shape for name, shape in model_shapes(config).items() if _is_parameter(name)}
    autoencoder = sum(shape.numel() for shape in autoencoder_shapes(config.vae).values())
    shared = degrees.shard * degrees.tensor
    gathered = degrees.shard > 1
    layer = sum(shape.numel() for name, shape in shapes.items() if name.startswith("decoder.layers.0."))
    outside = sum(shape.numel() for name, shape in shapes.items() if not name.startswith("decoder.layers."))
    dequantised = 0
    if (adapters := recipe.adapters) is not None:
        precision = base_precision(adapters, dtype)
        everything = weight_bytes(config, precision, ("generate", "edit", "understand"))
        frozen = everything.total - everything.autoencoder
        if adapters.base is not None:
            dequantised = config.decoder.hidden_size * config.decoder.intermediate_size * dtype.itemsize
        matrices, cast = 0, 0
    else:
        frozen = _FROZEN_ITEMSIZE * sum(shape.numel() for name, shape in shapes.items() if name not in trained)
        muon = recipe.optimizer.name == "muon"
        matrices = sum(n for name, n in trained.items() if muon and len(shapes[name]) == 2 and ".layers." in name)
        cast = sum(s.numel() for name, s in shapes.items() if name.startswith("decoder.layers.0.") and len(s) == 2)
    return TrainingWeights(
        trained=-(-sum(trained.values()) // shared),
        trained_matrices=matrices // shared,
        frozen_bytes=frozen // shared,
        layer_parameters=layer // degrees.tensor if gathered else 0,
        outside_parameters=outside if gathered else 0,
        cast_parameters=0 if gathered else cast // degrees.tensor,
        dequantised_bytes=dequantised,
        autoencoder_bytes=autoencoder * (4 + dtype.itemsize),  # as it is stored, and as it encodes
        optimizer_in_host=recipe.parallel.offload_optimizer or recipe.parallel.enable_cpu_offload,
    )


def _datasets(recipe: BagelRecipe) -> list[Dataset] | None:
    """The data sets of a recipe; None where some of its documents are drawn without end.

    Raises:
        DataError: there are no data, or a file cannot be used.
    """
    supplies = [group.supply for group in recipe.data.open(recipe.seed).groups()]
    files = [supply for supply in supplies if isinstance(supply, RowSupply)]
    return [dataset for supply in files for dataset in supply.datasets] if len(files) == len(supplies) else None


def _rows(recipe: BagelRecipe) -> int | None:
    """Rows of all data sets; None where one does not say."""
    datasets = _datasets(recipe)
    counts = [unit.rows for dataset in datasets or () for unit in dataset.reader.units()]
    return None if datasets is None or None in counts else sum(count or 0 for count in counts)


def samples_per_pack(recipe: BagelRecipe, start: StartShape, pack: AnyPackConfig) -> float | None:
    """Samples of a pack on average, by the tokens of the first rows of each data set; None where the tokenizer is not
    on this machine, or no row could be used.
    """
    datasets = _datasets(recipe)
    if datasets is None or start.tokenizer is None:
        return None
    builder = SampleBuilder(
        start.tokenizer, start.vae, start.vit, start.config.latent_stride, start.config.vit.patch_size, recipe.dropout
    )
    und = gen = found = 0
    for dataset in datasets:
        rows = (row for unit in range(len(dataset.reader.units())) for _, row in dataset.rows(unit))
        for number, row in enumerate(islice(rows, _COUNTED_ROWS)):
            rng = random.Random(f"plan {number}")
            with suppress(SkipRow):
                sample = builder(number, dataset.document(row, RandomDraws(rng)), rng, dataset.images)
                und, gen, found = und + sample.und_len, gen + sample.gen_len, found + 1
    if not found or not und + gen:
        return None
    if not isinstance(pack, PackConfig):
        return pack.tokens * found / (und + gen)
    most = [pack.rows * slots * found / taken for slots, taken in ((pack.und, und), (pack.gen, gen)) if taken]
    return min(most)


def _seconds(recipe: BagelRecipe) -> float | None:
    """Seconds of a step, as the run's last report measured them; None before it."""
    path = recipe.output / METRICS_FILE
    if not path.is_file():
        return None
    for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            rate = json.loads(line)["steps_per_second"]
        except (ValueError, KeyError, TypeError):
            continue
        return 1 / rate if isinstance(rate, int | float) and rate > 0 and math.isfinite(rate) else None
    return None
