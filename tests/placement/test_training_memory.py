"""The predicted memory of a training step against the bytes that are alive in small models, counted."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bagel_mot.config import NAMED_CONFIGS, BagelConfig, DecoderConfig, VitConfig
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.segment_attention import SegmentAttention
from bagel_mot.parallel.activations import checkpoint_activations
from bagel_mot.placement.training_memory import TrainingWeights, TrainingWork, saved_bytes, training_memory
from bagel_mot.sequence import PackSpec, Sample, TextSegment, VaeSegment, Values, VitSegment, pack
from bagel_mot.tokenizer import SpecialTokens
from bagel_mot.training.objective import CE_CHUNK, NoisedPack, add_noise, compute_losses

MARGIN = 0.1  # a prediction's largest error, as a share of what was counted


def _model(layers: int) -> BagelModel:
    torch.manual_seed(0)
    return BagelModel(
        BagelConfig(
            decoder=DecoderConfig(
                hidden_size=64, num_layers=layers, num_heads=4, num_kv_heads=2, intermediate_size=256, vocab_size=512
            ),
            vit=VitConfig(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=96, image_size=140),
            max_latent_size=16,
            vit_max_num_patch_per_side=10,
        )
    )


def _pack(config: BagelConfig, rows: int, text: int, drawn: int, seen: int) -> NoisedPack:
    """One sample in each row: a text with loss, and a seen and a drawn square of so many tokens a side."""
    spec = PackSpec.of(config, SpecialTokens(1, 2, 3, 4))
    ids = tuple(range(10, 8 + text))
    segments = (
        TextSegment((1, *ids, 2), labels=(*ids, 2)),
        VitSegment(torch.randn(seen**2, config.vit.patch_dim), (seen, seen)),
        VaeSegment(torch.randn(drawn**2, config.latent_dim), (drawn, drawn), noised=True),
    )
    samples = [Sample(segments) for _ in range(rows)]
    values = Values.of(samples, spec)
    layout = pack([[sample] for sample in samples], spec)
    return add_noise(layout, values, torch.rand(rows), torch.randn_like(values.latents))


def _work(noised: NoisedPack, dtype: torch.dtype, **more: Any) -> TrainingWork:
    layout = noised.layout
    return TrainingWork(
        rows=layout.rows,
        und=layout.rows * layout.und_len,
        gen=layout.rows * layout.gen_len,
        patches=layout.vit_slots.numel(),
        targets=layout.ce_labels.numel(),
        encoded_pixels=0,
        dtype=dtype,
        chunk=CE_CHUNK,
        on_cpu=True,
        **more,
    )


def _weights(model: BagelModel) -> TrainingWeights:
    matrices = sum(p.numel() for p in model.decoder.layers[0].parameters() if p.ndim == 2)
    return TrainingWeights(trained=sum(p.numel() for p in model.parameters()), cast_parameters=matrices)


def _loss(model: BagelModel, noised: NoisedPack, dtype: torch.dtype, *, masked: bool = True) -> torch.Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        attend = (MaskedAttention if masked else SegmentAttention)(noised.layout, dtype=dtype)
        losses = compute_losses(model, noised, attend)
        return losses.ce.mean() + losses.mse.mean()


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "by segments"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "text", "drawn", "seen"), [(1, 60, 12, 8), (3, 50, 8, 6), (2, 200, 4, 4)])
def test_what_is_kept_for_the_backward_pass_is_predicted(
    rows: int, text: int, drawn: int, seen: int, dtype: torch.dtype, masked: bool
) -> None:
    model = _model(layers=3)
    noised = _pack(model.config, rows, text, drawn, seen)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (where := tensor.untyped_storage().data_ptr()) not in own:
            kept[where] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _loss(model, noised, dtype, masked=masked)
    logits = noised.layout.ce_labels.numel() * model.config.decoder.vocab_size * 4  # their logarithms
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - logits
    predicted = saved_bytes(model.config, _work(noised, dtype, masked=masked), _weights(model))
    assert predicted == pytest.approx(counted, rel=MARGIN)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive and were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.most = 0

    @property
    def now(self) -> int:
        return sum(self.alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.most = max(self.most, self.now)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("checkpointing", "masked"), [("none", True), ("full", True), ("none", False)])
def test_the_worst_moment_of_a_step_is_predicted(checkpointing: Any, masked: bool, dtype: torch.dtype) -> None:
    model = _model(layers=4)
    noised = _pack(model.config, 3, 100, 12, 6)
    if checkpointing == "full":
        checkpoint_activations(model.decoder.layers, "full")
    with _LiveBytes() as live:
        for parameter in model.parameters():  # known, so that what follows is beside them
            parameter.detach()
        before = live.now
        live.most = 0
        _loss(model, noised, dtype, masked=masked).backward()
    work = _work(noised, dtype, checkpointing=checkpointing, masked=masked)
    memory = training_memory(model.config, work, _weights(model))
    counted = live.most - before
    assert memory.total - memory.held == pytest.approx(counted, rel=MARGIN)
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def test_accumulating_keeps_gradients_beside_activations_and_moments_may_be_elsewhere() -> None:
    config = NAMED_CONFIGS["7b-mot"]
    work: dict[str, Any] = {"rows": 1, "und": 2000, "gen": 8000, "patches": 0, "targets": 1000, "encoded_pixels": 0}
    work |= {"dtype": torch.bfloat16, "chunk": CE_CHUNK, "masked": False, "vit_trains": False}
    weights = TrainingWeights(trained=10**9, frozen_bytes=10**10)
    once = training_memory(config, TrainingWork(**work, checkpointing="full"), weights)
    more = training_memory(config, TrainingWork(**work, checkpointing="full", accumulates=True), weights)
    assert once.gradients == once.average == 4 * 10**9
    assert once.optimizer == 8 * 10**9
    assert once.weights == 14 * 10**9
    assert once.total < more.total <= once.total + once.gradients
    selective = training_memory(config, TrainingWork(**work, checkpointing="selective"), weights)
    nothing = training_memory(config, TrainingWork(**work), weights)
    assert once.activations < selective.activations < nothing.activations
    away = TrainingWeights(trained=10**9, frozen_bytes=10**10, optimizer_in_host=True)
    assert training_memory(config, TrainingWork(**work), away).optimizer == 0
