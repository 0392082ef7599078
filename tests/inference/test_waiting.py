"""Steps that no host waits for: a model without values, on the meta device, refuses whatever asks for a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.engine.ops import DecodeOp, TokenChoice
from bagel_mot.inference.engine.runner import Runner
from bagel_mot.model import decoder
from bagel_mot.model.bagel import BagelModel

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Counts copies to the device, and names those that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.waiting = 0, []  # type: ignore[var-annotated]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func._schema.name in ("aten::_to_copy", "aten::to", "aten::copy_"):
            source = args[1] if func._schema.name == "aten::copy_" else args[0]
            if source.device.type == "cpu" and found.device == META:
                self.count += 1
                bound = dict(zip([each.name for each in func._schema.arguments], args, strict=False)) | kwargs
                if not bound.get("non_blocking"):
                    self.waiting.append(f"{func} {tuple(source.shape)}")
        return found


@pytest.fixture
def empty(checkpoint: Checkpoint, defaults: Defaults, monkeypatch: pytest.MonkeyPatch) -> Bagel:
    """The recorded model without values. Decoded images, which the host waits for, are grey."""
    with META:
        model = BagelModel(checkpoint.config).eval()
    bagel = Bagel(Checkpoint(**{**vars(checkpoint), "model": model}), defaults=defaults)
    monkeypatch.setattr(decoder, "for_matmuls", lambda x: x)  # autocast does not know this device
    waited: list[str] = []

    def decode(self: Runner, batch: Sequence[DecodeOp]) -> None:
        for op in batch:
            assert op.latent.device == META
            waited.append("image")
            op.settle(torch.zeros(3, *(8 * side for side in op.latent.shape[1:])))

    monkeypatch.setattr(Runner, "decode", decode)
    bagel.waited = waited  # type: ignore[attr-defined]
    return bagel


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cfg_renorm_type": "channel"},
        {"cfg_image_scale": 2.0, "cfg_renorm_type": "text_channel"},
        {"eta": 0.5},
        {"enable_taylorseer": True, "num_timesteps": 14},
    ],
    ids=["guided", "by channel", "three branches", "fresh noise", "extrapolated"],
)
def test_the_host_waits_once_for_an_image(empty: Bagel, settings: dict[str, Any]) -> None:
    with Copies() as copies:
        empty.generate("a red car", seed=0, **settings)
    assert empty.waited == ["image"]  # type: ignore[attr-defined]
    assert copies.count > 5
    assert not copies.waiting


def test_a_batch_of_images_too(empty: Bagel) -> None:
    empty.generate(["a red car", "a sun"], seed=[0, 1], size=[(48, 32), (32, 32)])
    assert empty.waited == ["image"] * 2  # type: ignore[attr-defined]


def test_a_number_of_the_device_is_refused(empty: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above could not fail."""
    from bagel_mot.inference import sampler

    step = sampler.step
    for ask in (lambda x: x.sum().item(), lambda x: bool(x.isfinite().all()), lambda x: x.cpu(), lambda x: x.tolist()):

        def waiting(x: Tensor, *more: Any, ask: Callable[[Tensor], object] = ask) -> Tensor:
            ask(x)
            return step(x, *more)

        monkeypatch.setattr(sampler, "step", waiting)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            empty.generate("a red car", seed=0)


def test_the_host_waits_once_for_the_tokens_of_all_texts(empty: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    from bagel_mot.inference.engine import runner

    waited: list[int] = []
    ids = empty.tokenizer.encode("red")

    def choose(logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
        waited.append(len(choices))
        return [ids[0]] * len(choices)

    monkeypatch.setattr(runner, "choose_tokens", choose)
    monkeypatch.setattr(torch, "Generator", lambda device=None: torch._C.Generator())
    empty.ask(None, ["how many?", "where?"], max_new_tokens=4)
    assert waited == [2] * 4


def test_a_copy_that_is_waited_for_is_seen() -> None:
    with Copies() as copies:
        torch.zeros(2).to(META)
        torch.zeros(3).to(META, non_blocking=True)
        torch.zeros(4, device=META).copy_(torch.zeros(4))
    assert copies.count == 3
    assert [name.rpartition("(")[2] for name in copies.waiting] == ["2,)", "4,)"]
