"""Training the unified model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bagel_mot.checkpoint.adapters import write_adapter
from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.official import save_checkpoint
from bagel_mot.checkpoint.parts import ModelParts
from bagel_mot.checkpoint.precision import dtype_name
from bagel_mot.checkpoint.side_files import REPLAY_FILE
from bagel_mot.data.documents import IndexedSample
from bagel_mot.data.feed import GroupItem, SampleFeed, SampleMaker
from bagel_mot.data.layout import TrainingPack
from bagel_mot.data.loader import Prefetcher, StreamGroup
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.skips import SkipList
from bagel_mot.data.sources.base import IndexedSource
from bagel_mot.data.sources.mixed import MixedPart, MixedSource
from bagel_mot.data.streams import PackStream, StreamRotation, pack_gauges
from bagel_mot.data.supply import RowSupply
from bagel_mot.data.workers import Workers
from bagel_mot.errors import RecipeError
from bagel_mot.images import scale_levels
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.loading import choose_device
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.quant.compiling import prepare_compiling
from bagel_mot.model.transfer import to_device
from bagel_mot.parallel.apply import parallelise
from bagel_mot.parallel.launch import current
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.tensor import partial_parameters
from bagel_mot.parallel.ulysses import SequenceShare
from bagel_mot.sequence import TrainingLayout, Values
from bagel_mot.training.beginning import begin, settle_defaults
from bagel_mot.training.breakdown import PARTS, sums_by_dataset, sums_by_timestep, tokens_by_kind
from bagel_mot.training.checkpoints import find
from bagel_mot.training.compiling import note_on_compiling
from bagel_mot.training.encoding import ImageEncoder
from bagel_mot.training.flops import FlopCounter
from bagel_mot.training.lora import add_adapters, base_velocities, trained_adapter
from bagel_mot.training.metrics import FLOPS
from bagel_mot.training.objective import (
    CE_CHUNK,
    Losses,
    OwnTargets,
    add_noise,
    attention_of,
    compute_losses,
    draw_timesteps,
    loss_counts,
)
from bagel_mot.training.open_data import data_for
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.replay import LatentsOnly
from bagel_mot.training.sizes import slots_to_share
from bagel_mot.training.task import TrainingTask
from bagel_mot.training.trainable import select_trainable, trains_gen_alone
from bagel_mot.training.validation import validation_packs


@dataclass
class BagelBatch:
    """A pack on the device that trains, its latents encoded; its counts were made before it left the host."""

    layout: TrainingLayout
    values: Values
    counts: dict[str, float]
    own: OwnTargets | None = None
    datasets: Tensor | None = None  # (samples,) number of each sample's data set; None where they have no names
    taught: Tensor | None = None  # (Ml,) bool: whether the checkpoint teaches each latent target; None: it teaches none


class BagelTask(TrainingTask[BagelModel, BagelBatch]):
    """Both losses over packs of documents."""

    def __init__(self, recipe: BagelRecipe) -> None:
        self.recipe = recipe
        self.stored_dtype = torch.bfloat16 if recipe.adapters is None else None  # as their layouts have it
        self.device = choose_device(recipe.device)
        torch.manual_seed(recipe.seed)
        self.source = recipe.data.open(recipe.seed)
        beginning = begin(recipe, self.source, current())
        start, self._settings_files, self._parts = beginning.checkpoint, beginning.settings_files, beginning.parts
        self._adapter_values: dict[str, Tensor] = {}  # where the base has no values yet
        self._share: SequenceShare | None = None
        self._partial: list[nn.Parameter] = []
        self.module, self.autoencoder, self.tokenizer = start.model, start.autoencoder, start.tokenizer
        self.config = replace(start.config, timestep_shift=recipe.timestep_shift or start.config.timestep_shift)
        self.module.train()
        if recipe.adapters is not None:
            divided = self._parts if isinstance(self._parts, ModelParts) else None
            add_adapters(self.module, recipe.adapters, divided)
            if divided is not None:
                self._adapter_values = {name: t for name, t in self.module.state_dict().items() if not t.is_meta}
                self.module.to("meta")
        else:
            select_trainable(self.module, recipe.trainable, official_name)
            for parameter in self.module.parameters():
                if not parameter.requires_grad:
                    parameter.data.copy_(_as_written(parameter.data))
        frozen = (name for name, p in self.module.named_parameters() if not p.requires_grad)
        self._rounded = set(frozen if recipe.adapters is None else ())
        if recipe.replay is not None:
            init = find(str(recipe.init), recipe.output)
            replay = recipe.replay.source(self._settings_files, init, recipe.output, recipe.seed)
            if replay is not None:
                if isinstance(replay, IndexedSource) and trains_gen_alone(self.module):
                    replay = LatentsOnly(replay)
                self.source = MixedSource(
                    [MixedPart(self.source), MixedPart(replay, recipe.replay.weight, replayed=True)]
                )
        self.autoencoder.to(self.device).eval().requires_grad_(False)
        self.loss_weights = {"ce": recipe.ce_weight, "mse": recipe.mse_weight}
        defaults = settle_defaults(self._settings_files, recipe.defaults, self.config)
        vae, vit = recipe.max_sides.limited(defaults.vae_transform, defaults.vit_transform)
        data = data_for(recipe, self.source, self.config, self.tokenizer, vae, vit)
        self.pack, self.builder, self.spec, self.groups = data.pack, data.builder, data.spec, data.groups
        maker = SampleMaker(tuple(group.supply for group in self.groups), self.builder, self.spec, recipe.seed)
        self.workers: Workers[GroupItem, IndexedSample | SkipRow] = Workers(maker, recipe.data.workers)
        self._skips, self._lists_skips = SkipList(recipe.output), True
        self._prefetcher: Prefetcher[list[TrainingPack]] | None = None
        supplies = [group.supply for group in self.groups]
        self._dataset_names = [d.name for supply in supplies if isinstance(supply, RowSupply) for d in supply.datasets]
        self._details: dict[str, Tensor | float] = {}
        self._validation: list[BagelBatch] | None = None
        self._validated: Sequence[int] = range(recipe.validation.packs) if recipe.validation else ()
        self._counts_packs = True  # one of the processes that compute the same pack
        self._compile_note = note_on_compiling(recipe.compile, self.device)
        self._compiles = recipe.compile and self._compile_note is None
        self._attention = attention_of(recipe.attention, self.device, recipe.dtype)
        if self._compiles:
            prepare_compiling()
        # It runs in the run's precision; what is saved keeps its own.
        self.encode = ImageEncoder(
            self.autoencoder, self.config.latent_patch_size, recipe.dtype, self.device, compiled=self._compiles
        )

    def parallelise(self, ranks: Ranks) -> None:
        recipe = self.recipe
        self.flops = FlopCounter(
            self.module,
            recomputes_layers=recipe.parallel.activation_checkpoint == "full",
            chunk=CE_CHUNK,
            distils=recipe.distils,
        )
        self._counts_packs = ranks.context_rank == 0
        if recipe.validation is not None:
            if recipe.validation.packs % ranks.degrees.data:
                raise RecipeError(
                    f"validation.packs is {recipe.validation.packs}, which {ranks.degrees.data} data-parallel "
                    "processes cannot share: take a multiple of them"
                )
            self._validated = range(ranks.data_rank, recipe.validation.packs, ranks.degrees.data)
        ranks.degrees.check_decoder(self.config.decoder, slots_to_share(self.pack, ranks.degrees.context))
        dynamic = False if self.pack.fixed_shape else None
        compiled = partial(torch.compile, dynamic=dynamic) if self._compiles else None
        parallelise(
            self.module,
            ranks,
            recipe.parallel,
            precision=dtype_name(recipe.dtype),
            device=self.device,
            compiled=compiled,
            draws=recipe.drops_out,
            read=None if self._parts is None else self._read,
        )
        if self._parts is not None:
            self._parts.close()
            self._adapter_values.clear()
        self._lists_skips = ranks.leads_data
        if ranks.context_mesh is not None:
            self._share = SequenceShare(ranks)
        if ranks.tensor_mesh is not None:
            self._partial = partial_parameters(self.module.decoder.layers)

    def _read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A part of a tensor of the model, as it is when the training begins."""
        assert self._parts is not None
        if name in self._adapter_values:
            inside = (slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
            return self._adapter_values[name][tuple(inside)]
        part = self._parts.read(name.replace(".base_layer.", "."), offsets, sizes)
        return _as_written(part) if name in self._rounded else part

    def partial_parameters(self) -> list[nn.Parameter]:
        return self._partial

    def stream(self, number: int, total: int) -> PackStream | StreamRotation:
        """One of the logical streams of the run, at its beginning."""
        parts = self.source.rotation
        if parts == 1:
            return self.pack_stream(number, total)
        return StreamRotation([self.pack_stream(number * parts + part, total * parts) for part in range(parts)])

    def pack_stream(self, number: int, total: int) -> PackStream:
        """A stream of packs, at its beginning: number `number` of `total`."""
        seed = self.recipe.seed
        mixture = self.source.mixture(f"{seed} {number} {total}")
        feed = SampleFeed(self.groups, mixture, self.workers, seed, number, total)
        return PackStream(feed, self.spec, self.pack)

    def open_streams(self, streams: Sequence[int], total: int) -> None:
        self._prefetcher = Prefetcher(StreamGroup({number: self.stream(number, total) for number in streams}))

    @property
    def prefetcher(self) -> Prefetcher[list[TrainingPack]]:
        """The opened streams."""
        assert self._prefetcher is not None, "the streams are not opened yet"
        return self._prefetcher

    def next_batches(self) -> list[BagelBatch]:
        before = self.data_state()
        packs = self.prefetcher.next_batch()
        self._count(packs)
        for (number, state), pack in zip(before.items(), packs, strict=True):
            if self._lists_skips:
                self._skips.add(number, state["listed"], pack.skipped)
        return [self.to_device(pack) for pack in packs]

    @torch.no_grad()
    def to_device(self, laid_out: TrainingPack) -> BagelBatch:
        """Moves a pack to the device and encodes its images there."""
        encoded = [torch.zeros(0, self.config.latent_dim, device=self.device)]
        encoded += [self.encode(images) for images in laid_out.images]
        latents = torch.cat(encoded)[laid_out.latent_source.to(self.device, non_blocking=True)]
        timesteps = torch.zeros(len(laid_out.layout.latent_grids))
        patches = scale_levels(to_device(laid_out.vit_patches, self.device))
        values = Values(patches, latents, timesteps).to(self.device)
        layout = laid_out.layout
        counts = loss_counts(layout, self.recipe.ce_reweight)
        own = None
        if self._share is not None:
            text = self._share.own(layout.ce_slots, layout.rows * layout.und_len)
            latent = self._share.own(layout.latent_slots, layout.rows * layout.gen_len)
            own = OwnTargets(*text, *latent).to(self.device)
        datasets, taught = self._numbers_of(laid_out.datasets), self._taught(laid_out, own)
        return BagelBatch(layout.to(self.device), values, counts, own, datasets, taught)

    def _taught(self, laid_out: TrainingPack, own: OwnTargets | None) -> Tensor | None:
        """The latent targets (Ml,) that the checkpoint teaches, on the device; None if this run has it teach none."""
        if not self.recipe.distils:
            return None
        taught = laid_out.replayed[laid_out.layout.latent_sample].to(self.device)
        return taught if own is None else taught[own.latents]

    def _numbers_of(self, datasets: Sequence[str]) -> Tensor | None:
        """The numbers (samples,) of the samples' data sets, on the device; None where one has no name."""
        numbers = {name: number for number, name in enumerate(self._dataset_names)}
        if not numbers or not numbers.keys() >= set(datasets):
            return None
        return torch.tensor([numbers[name] for name in datasets], dtype=torch.int64).to(self.device)

    def official_name(self, name: str) -> str:
        return official_name(name)

    def kept_tensors(self) -> dict[str, Tensor]:
        if self.recipe.adapters is None:
            return super().kept_tensors()
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def notes(self) -> list[str]:
        notes = [self._compile_note] if self._compile_note else []
        if self.recipe.replay is not None and not isinstance(self.source, MixedSource):
            lacks = f"{self.recipe.init} has no {REPLAY_FILE}"
            notes.append(f"nothing is replayed: {lacks}; replay.prompts or replay.data would keep what the model knows")
        return notes

    def written_tensors(self) -> dict[str, Tensor]:
        return super().written_tensors() if self.recipe.adapters is None else self.kept_tensors()

    def gauges(self, states: Sequence[Any]) -> dict[str, float]:
        return pack_gauges(states)

    def data_state(self) -> dict[int, Any]:
        return dict(self.prefetcher.state_dict())

    def load_data_state(self, states: Sequence[Any]) -> None:
        mine = {number: states[number] for number in self.data_state()}
        self.prefetcher.load_state_dict(mine)

    def close(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
        self.workers.close()

    def counts(self, batch: BagelBatch) -> dict[str, float]:
        return batch.counts

    def tokens(self, batch: BagelBatch) -> int:
        return batch.layout.num_tokens

    def losses(self, batch: BagelBatch, generator: torch.Generator) -> dict[str, Tensor]:
        losses, timesteps = self._losses(batch, generator)
        with torch.no_grad():
            errors = losses.mse.mean(-1)
            self._add_details(sums_by_timestep(errors, batch.layout, timesteps, batch.own))
            datasets = batch.datasets
            if self._dataset_names and datasets is not None:
                self._add_details(
                    sums_by_dataset(errors, losses.ce, batch.layout, datasets, self._dataset_names, batch.own)
                )
        return {"ce": losses.ce_sum(self.recipe.ce_reweight), "mse": losses.mse_sum()}

    def _losses(self, batch: BagelBatch, generator: torch.Generator) -> tuple[Losses, Tensor]:
        """The losses of a batch, and the timestep of each of its images, (images,)."""
        layout, latents = batch.layout, batch.values.latents
        drawn = draw_timesteps(layout.timesteps, self.config.timestep_shift, generator)
        timesteps = drawn[layout.timestep_of]
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        noised = add_noise(layout, batch.values, timesteps, noise)
        if self.recipe.drops_out:  # which PyTorch draws from its global state
            torch.manual_seed(generator.initial_seed())
        attend, taught = self._attention(layout), None
        if batch.taught is not None and self.module.training:
            # Whatever the pack holds: where the model is divided, every process has to take part.
            taught = batch.taught, base_velocities(self.module, noised, attend, batch.own)
        return compute_losses(self.module, noised, attend, batch.own, taught), timesteps

    def _count(self, packs: Sequence[TrainingPack]) -> None:
        """Notes tokens by kind and operations of packs that are still on the host."""
        for pack in packs:
            work = self.flops.count(pack.layout)
            counts = tokens_by_kind(pack.layout)
            counts |= dict(zip(FLOPS, (work.useful, work.recomputed, work.published), strict=True))
            self._add_details({name: count if self._counts_packs else 0.0 for name, count in counts.items()})

    def _add_details(self, numbers: Mapping[str, Tensor | float]) -> None:
        for name, value in numbers.items():
            self._details[name] = self._details.get(name, 0.0) + value

    def take_details(self) -> dict[str, Tensor | float]:
        # Every process needs the same names, and a data set may be in the packs of some alone.
        names = [f"{loss}_of/{name}{part}" for name in self._dataset_names for loss in ("mse", "ce") for part in PARTS]
        details = {**dict.fromkeys(names, 0.0), **self._details}
        self._details = {}
        return details

    @torch.no_grad()
    def validation(self) -> dict[str, Tensor | float]:
        config = self.recipe.validation
        assert config is not None
        if self._validation is None:
            packs = validation_packs(config, self.builder, self.spec, self.pack, self._validated)
            self._validation = [self.to_device(pack) for pack in packs]
        generator = torch.Generator(self.device)
        found: dict[str, Tensor | float] = {}
        self.module.eval()
        for number, batch in zip(self._validated, self._validation, strict=True):
            generator.manual_seed(number)
            dtype = self.recipe.dtype
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                losses, _ = self._losses(batch, generator)
            for name, value in (("ce", losses.ce_sum(self.recipe.ce_reweight)), ("mse", losses.mse_sum())):
                total, count = (f"validation/{name}{part}" for part in PARTS)
                found[total] = found.get(total, 0.0) + value
                own = batch.counts[name] if self._counts_packs else 0.0
                found[count] = found.get(count, 0.0) + own
        self.module.train()
        return found

    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes a whole checkpoint: weights, autoencoder, tokenizer, and the files beside them. Of adapters
        their folder alone, whose base is what the run began with.
        """
        if (config := self.recipe.adapters) is not None:
            adapter = trained_adapter(self.module, config, weights)
            write_adapter(folder, adapter, self.recipe.init, dropout=config.dropout)
            return
        save_checkpoint(
            folder,
            self.config,
            model=weights,
            autoencoder=self.autoencoder.state_dict(),
            tokenizer=self.tokenizer,
        )
        for name, content in self._settings_files.items():
            (folder / name).write_bytes(content)

    def write_samples(self, path: Path, checkpoint: Path) -> None:
        """Lets the source of the data show what a checkpoint has learned."""
        if self.recipe.adapters is None:
            bagel = Bagel.from_pretrained(checkpoint, device=str(self.device))
        else:
            base = find(str(self.recipe.init), self.recipe.output)
            bagel = Bagel.from_pretrained(base, device=str(self.device), adapters=[checkpoint])
        self.source.write_samples(bagel, path)


def _as_written(frozen: Tensor) -> Tensor:
    """A float32 tensor that does not train, as it is in the checkpoints that are written."""
    return frozen.bfloat16().float()
