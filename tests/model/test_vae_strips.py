"""The autoencoder strip by strip: the whole map's numbers, without a seam, without copies between convolutions."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.config import VaeConfig
from bagel_mot.model import kernels, passes, prepacked_conv, vae_strips
from bagel_mot.model.prepacked_conv import PrepackedConv2d, doubling_weight, prepack_convolutions
from bagel_mot.model.vae import Autoencoder

CONFIG = VaeConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=3, scale_factor=0.7, shift_factor=-0.2)
STRIP = 16384  # bytes: an image of 64 × 80 then takes up to 80 of them
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])

pytestmark = pytest.mark.skipif(not kernels.has_channel_kernels("cpu", torch.bfloat16), reason="PyTorch lacks them")


@pytest.fixture(autouse=True)
def _small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_strips, "STRIP_BYTES", STRIP)
    monkeypatch.setattr(vae_strips, "SMALLEST_MAP", 0)
    monkeypatch.setattr(prepacked_conv, "_SMALLEST", {torch.float32: 0, torch.bfloat16: 0})


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def autoencoder(dtype: torch.dtype, config: VaeConfig = CONFIG, *, prepacked: bool = False) -> Autoencoder:
    torch.manual_seed(1)
    made = Autoencoder(config).requires_grad_(False).eval()
    for norm in made.modules():
        if isinstance(norm, nn.GroupNorm):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
    made.to(dtype)
    if prepacked:
        if not kernels.can_prepack_convolutions(dtype):
            pytest.skip("this processor has no prepacked convolutions")
        assert prepack_convolutions(made) == sum(isinstance(part, nn.Conv2d) for part in autoencoder(dtype).modules())
    return made


def images(dtype: torch.dtype, count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 80, generator=torch.Generator().manual_seed(2)).to(dtype) * 2 - 1


def whole(monkeypatch: pytest.MonkeyPatch, made: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """The latents of images and the images of these, by the modules themselves, which take whole maps."""
    with monkeypatch.context() as patch:
        patch.setattr(vae_strips, "SMALLEST_MAP", 1 << 40)
        latents = made.encode(x)
        return latents, made.decode(latents)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(params=["one pass", "two passes"])
def _activation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalisation and activation in a compiled pass, whether that is faster here or not; or by PyTorch."""
    library = passes.compiled() if request.param == "one pass" else None
    if library is None and request.param == "one pass":
        pytest.skip("no compiler, or another system than Linux")
    made = None if library is None else lambda dtype: passes.Passes(library, dtype)
    monkeypatch.setattr(vae_strips, "activation_for", lambda dtype, _: None if made is None else made(dtype))


@pytest.mark.usefixtures("_activation")
@pytest.mark.parametrize("prepacked", [False, True])
def test_float32_is_that_of_whole_maps(monkeypatch: pytest.MonkeyPatch, prepacked: bool) -> None:
    latents, pixels = whole(monkeypatch, autoencoder(torch.float64), images(torch.float64))
    made = autoencoder(torch.float32, prepacked=prepacked)
    assert error(made.encode(images(torch.float32)), latents) < 2e-5
    assert error(made.decode(latents.float()), pixels) < 2e-5


@pytest.mark.usefixtures("_activation")
@pytest.mark.parametrize("prepacked", [False, True])
def test_bfloat16_is_as_near_as_that_of_whole_maps(monkeypatch: pytest.MonkeyPatch, prepacked: bool) -> None:
    exact = whole(monkeypatch, autoencoder(torch.float64), images(torch.float64))
    rounded = autoencoder(torch.bfloat16)
    latents = exact[0].bfloat16()
    made = autoencoder(torch.bfloat16, prepacked=prepacked)
    with monkeypatch.context() as patch:
        patch.setattr(vae_strips, "SMALLEST_MAP", 1 << 40)
        before = error(rounded.encode(images(torch.bfloat16)), exact[0]), error(rounded.decode(latents), exact[1])
    assert error(made.encode(images(torch.bfloat16)), exact[0]) < 1.2 * before[0]
    assert error(made.decode(latents), exact[1]) < 1.2 * before[1]


@pytest.mark.parametrize("prepacked", [False, True])
def test_there_is_no_seam(monkeypatch: pytest.MonkeyPatch, prepacked: bool) -> None:
    """In float32 no pixel is off by a tenth of a level, though each strip of the finest level has one or two rows."""
    made = autoencoder(torch.float32, prepacked=prepacked)
    latents = made.encode(images(torch.float32))
    with monkeypatch.context() as patch:
        patch.setattr(vae_strips, "STRIP_BYTES", 1 << 40)
        once = made.decode(latents)
    assert (made.decode(latents) - once).abs().max() < 0.1 / 255


def test_strips_cover_a_map_once() -> None:
    for height in (1, 2, 7, 64, 1000):
        for row_bytes in (1, 5000, STRIP, 10 * STRIP):
            strips = list(vae_strips._strips(height, row_bytes))
            assert [row for strip in strips for row in range(strip.start, strip.stop)] == list(range(height))
            assert max(strip.stop - strip.start for strip in strips) <= max(1, -(-STRIP // row_bytes))
            assert strips[0].whole == (len(strips) == 1)


def test_statistics_are_exact_where_the_mean_is_large() -> None:
    x = (torch.randn(1, 64, 96, 64) + 30).to(memory_format=torch.channels_last)
    norm = autoencoder(torch.float32).decoder.norm_out
    norm = type(norm)(64)
    out = torch.empty_like(x)
    vae_strips._Normalisation.of(norm, x)(x, out)
    assert error(out, F.group_norm(x.double(), 32, eps=1e-6)) < 1e-5


def test_the_weight_after_doubling_is_that_of_both_together() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert conv.bias is not None
    made = F.conv2d(x, doubling_weight(conv.weight).double(), conv.bias.repeat(4), padding=1)
    found = torch.empty_like(expected)
    for place, part in enumerate(made.split(5, 1)):
        row, column = divmod(place, 2)
        found[:, :, row::2, column::2] = part[:, :, row : row + 4, column : column + 6]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@DTYPES
def test_a_prepacked_autoencoder_is_saved_as_it_was(dtype: torch.dtype) -> None:
    plain, made = autoencoder(dtype).state_dict(), autoencoder(dtype, prepacked=True).state_dict()
    assert plain.keys() == made.keys()
    assert all(torch.equal(plain[name], made[name]) for name in plain)


def test_small_weights_and_other_types_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert prepack_convolutions(autoencoder(torch.float32)) == 0
    assert prepack_convolutions(autoencoder(torch.float16)) == 0


class Calls(TorchDispatchMode):
    """Counts operations, and those that write a feature map anew in the same or another order."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.copies: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        result = func(*args, **(kwargs or {}))
        if name in ("clone", "contiguous", "_to_copy", "cat") and isinstance(result, Tensor) and result.ndim == 4:
            self.copies.append((name, tuple(result.shape)))
        return result


@pytest.mark.parametrize("strip", [STRIP, 1 << 40])
def test_no_feature_map_is_copied(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    monkeypatch.setattr(vae_strips, "STRIP_BYTES", strip)
    made = autoencoder(torch.bfloat16, prepacked=True)
    latents = made.encode(images(torch.bfloat16, 1)).contiguous()
    with Calls() as calls:
        made.decode(latents)
    channels = {CONFIG.z_channels, 3}
    assert all(shape[1] in channels for _, shape in calls.copies), calls.copies
    blocks = sum(isinstance(part, PrepackedConv2d) and part.out_channels > 3 for part in made.decoder.modules())
    assert calls.counts["add_"] <= 1, "residual blocks add in their convolution; attention has a pass of its own"
    if strip > STRIP:  # a convolution for each module and each doubling, and nothing a second time
        doublings = len(CONFIG.ch_mult) - 1
        convolutions = calls.counts["_convolution_pointwise"] + calls.counts["_convolution_pointwise_"]
        assert convolutions == blocks + doublings + 1
        assert calls.counts["native_batch_norm"] == calls.counts["silu_"] + 1 == calls.counts["batch_norm_update_stats"]


def test_every_map_stays_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    made = autoencoder(torch.bfloat16, prepacked=True)
    seen: list[bool] = []
    for name in ("prepacked_convolution", "add_prepacked_convolution"):
        original = getattr(kernels, name)

        def watched(x: Tensor, *rest: Any, original: Any = original) -> Any:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return original(x, *rest)

        monkeypatch.setattr(kernels, name, watched)
    made.decode(made.encode(images(torch.bfloat16)))
    assert seen
    assert all(seen)


def test_gradients_and_autocast_take_whole_maps() -> None:
    x = torch.zeros(1, 3, 64, 64)
    assert vae_strips.works_in_strips(x, 64 * 64 * 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert not vae_strips.works_in_strips(x, 64 * 64 * 32)
    with torch.inference_mode(False), torch.enable_grad():
        assert not vae_strips.works_in_strips(x, 64 * 64 * 32)


def test_an_image_is_the_same_in_any_batch() -> None:
    made = autoencoder(torch.bfloat16, prepacked=True)
    x = images(torch.bfloat16, 3)
    latents = made.encode(x)
    assert torch.equal(latents[1:2], made.encode(x[1:2]))
    assert torch.equal(made.decode(latents)[2:], made.decode(latents[2:]))


def test_a_copy_computes_the_same() -> None:
    made = autoencoder(torch.float32)
    x = images(torch.float32, 1)
    assert torch.equal(copy.deepcopy(made).encode(x), made.encode(x))
