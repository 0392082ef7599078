"""The autoencoder on the CPU, strip by strip: the same result in a fraction of the memory, and sooner.

A feature map of the finest level is hundreds of megabytes, and a network that makes a new one for each normalisation,
activation and convolution spends half of its time on memory: the system clears pages for each, and none is still in the
processor's caches when it is read. Here an image has two whole maps at a time: that which goes through the residual
blocks, to which each adds its result in place, and the one between a block's two convolutions. Everything between is
made for a strip of rows and dropped.

A strip is no tile: it gives the rows that the whole map would. Its convolution reads the row above and the one below,
and the statistics of the normalisation, which are those of the whole image, are gathered before, each column of pixels
in float32 and all of them in float64. So there is no seam.

    statistics of a map ─► each strip: scale, shift and SiLU in one pass, convolution ─► rows of the next map

All maps are channels_last, the order in which convolutions on the CPU are fastest, from the first to the last one.
Images of a batch follow one another: each keeps all cores busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.model import kernels
from bagel_mot.model.passes import activation_for
from bagel_mot.model.prepacked_conv import PrepackedConv2d
from bagel_mot.model.vae_parts import (
    AttentionBlock,
    DownLevel,
    Downsample,
    GroupNorm,
    Middle,
    ResnetBlock,
    UpLevel,
    Upsample,
    VaeDecoder,
    VaeEncoder,
)

STRIP_BYTES = 32 << 20
"""Bytes of a strip's feature map, about."""
SMALLEST_MAP = 1 << 20
"""Bytes of an image's finest feature map from which it is worked on in strips: below, the whole batch at once is
faster."""
_LAST = torch.channels_last


def works_in_strips(x: Tensor, numbers: int) -> bool:
    """Whether images are worked on in strips: large ones, on the CPU, where no gradient is wanted.

    Args:
        x: images or latents, (B, C, H, W).
        numbers: numbers in one image's finest feature map.
    """
    return works_alone(x) and strips_pay(x.device.type, x.dtype, numbers)


def works_alone(x: Tensor) -> bool:
    """Whether images or latents (B, C, H, W) are worked on one by one: on the CPU, where no gradient is wanted. Its
    convolutions may round otherwise for several, and images of one batch never influence one another. A compiled pass
    always has the same number of images, so that they do not either.
    """
    wanted = torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not wanted


def strips_pay(device: str, dtype: torch.dtype, numbers: int) -> bool:
    """Whether inference on such a device works in strips on images with so many numbers in their finest feature map."""
    return numbers * dtype.itemsize >= SMALLEST_MAP and kernels.has_channel_kernels(device, dtype)


def encode_in_strips(encoder: VaeEncoder, pixels: Tensor) -> Tensor:
    """(B, in_channels, H, W) -> (B, 2·z_channels, H/downsample, W/downsample), as `encoder` gives them."""
    found = [_encode(encoder, image) for image in pixels.split(1)]
    return torch.cat(found) if len(found) > 1 else found[0]


def decode_in_strips(decoder: VaeDecoder, z: Tensor) -> Tensor:
    """(B, z_channels, h, w) -> (B, out_ch, h·downsample, w·downsample), as `decoder` gives them."""
    found = [_decode(decoder, image) for image in z.split(1)]
    return torch.cat(found) if len(found) > 1 else found[0]


def _encode(encoder: VaeEncoder, image: Tensor) -> Tensor:
    x = encoder.conv_in(image.contiguous(memory_format=_LAST))
    between = _Between()
    for level in encoder.down:
        assert isinstance(level, DownLevel)
        x = _blocks(level.block, x, between)
        if level.downsample is not None:
            between.forget()
            x = _halved(level.downsample, x)
    x = _middle(encoder.mid, x, between)
    return _convolved(encoder.norm_out, x, encoder.conv_out, _new)


def _decode(decoder: VaeDecoder, image: Tensor) -> Tensor:
    x = decoder.conv_in(image.contiguous(memory_format=_LAST))
    between = _Between()
    x = _middle(decoder.mid, x, between)
    for level in reversed(decoder.up):
        assert isinstance(level, UpLevel)
        x = _blocks(level.block, x, between)
        if level.upsample is not None:
            between.forget()
            x = _doubled(level.upsample, x)
    return _convolved(decoder.norm_out, x, decoder.conv_out, _new)


# ------------------------------------------------------------------------------------------------------------- modules


class _Between:
    """The feature map between the two convolutions of a residual block, kept for the next block of its size."""

    def __init__(self) -> None:
        self._map: Tensor | None = None

    def forget(self) -> None:
        """Lets go of the map: the next one has another size."""
        self._map = None

    def __call__(self, like: Tensor, channels: int, height: int, width: int) -> Tensor:
        if self._map is None or self._map.shape != (1, channels, height, width):
            self.forget()  # before the next one is made
            self._map = _new(like, channels, height, width)
        return self._map


def _new(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    return torch.empty((1, channels, height, width), dtype=like.dtype, device=like.device, memory_format=_LAST)


def _blocks(blocks: nn.ModuleList, x: Tensor, between: _Between) -> Tensor:
    for block in blocks:
        assert isinstance(block, ResnetBlock)
        x = _residual(block, x, between)
    return x


def _residual(block: ResnetBlock, x: Tensor, between: _Between) -> Tensor:
    """The block's result; x is no longer what it was."""
    total = x if block.nin_shortcut is None else block.nin_shortcut(x)
    h = _convolved(block.norm1, x, block.conv1, between)
    _add_convolved(block.norm2, h, block.conv2, total)
    return total


def _middle(middle: Middle, x: Tensor, between: _Between) -> Tensor:
    x = _residual(middle.block_1, x, between)
    attention: AttentionBlock = middle.attn_1
    normed = torch.empty_like(x)
    _Normalisation.of(attention.norm, x)(x, normed)
    x += attention.attend(normed)
    return _residual(middle.block_2, x, between)


def _halved(down: Downsample, x: Tensor) -> Tensor:
    _, channels, height, width = x.shape
    out: Tensor | None = None
    for strip in _strips(height // 2, channels * width * x.element_size()):
        stop = 2 * strip.stop + 1
        part = F.pad(x[:, :, 2 * strip.start : stop], (0, 1, 0, int(stop > height)))
        rows = _padded(down.conv, part, (0, 0))
        if strip.whole:
            return rows
        out = _new(x, channels, height // 2, width // 2) if out is None else out
        out[:, :, strip.start : strip.stop] = rows
        del rows  # before those of the next strip are made
    assert out is not None
    return out


def _doubled(up: Upsample, x: Tensor) -> Tensor:
    _, channels, height, width = x.shape
    out = _new(x, channels, 2 * height, 2 * width)
    places = out.unflatten(3, (width, 2)).unflatten(2, (height, 2))  # (1, C, H, 2, W, 2)
    for strip in _strips(height, 4 * channels * width * x.element_size()):
        part = x[:, :, strip.start - strip.above : strip.stop + strip.below]
        if up.doubling is None:
            rows = up.conv(F.interpolate(part, scale_factor=2.0, mode="nearest"))
            first, last = 2 * strip.above, rows.shape[2] - 2 * strip.below
            out[:, :, 2 * strip.start : 2 * strip.stop] = rows[:, :, first:last]
            continue
        bias = up.conv.bias
        assert bias is not None
        made = kernels.prepacked_convolution(part, up.doubling, bias.repeat(4), 1, (1, 1))  # (1, 4·C, rows + 1, W + 1)
        for place, found in enumerate(made.split(channels, 1)):
            row, column = divmod(place, 2)
            first = strip.above + row
            places[:, :, strip.start : strip.stop, row, :, column] = found[
                :, :, first : first + strip.stop - strip.start, column : column + width
            ]
    return out


# -------------------------------------------------------------------------------------------------------------- strips


@dataclass(frozen=True)
class _Strip:
    """Rows `start` to `stop` of a map, and whether there are rows above and below them."""

    start: int
    stop: int
    above: bool
    below: bool

    @property
    def whole(self) -> bool:
        """Whether it is the whole map."""
        return not (self.above or self.below)


def _strips(height: int, row_bytes: int) -> Iterator[_Strip]:
    """The strips of a map, as equal as can be."""
    count = min(height, -(-height * row_bytes // STRIP_BYTES))
    edges = [height * index // count for index in range(count + 1)]
    for start, stop in pairwise(edges):
        yield _Strip(start, stop, start > 0, stop < height)


class _Normalisation:
    """A group normalisation with the statistics of one image, ready for any of its rows."""

    def __init__(self, mean: Tensor, variance: Tensor, norm: GroupNorm, dtype: torch.dtype) -> None:
        self._mean, self._variance, self._eps = mean.float(), variance.float(), norm.eps
        self._weight, self._bias = norm.weight.float(), norm.bias.float()
        self._passes = activation_for(dtype, norm.num_channels)
        if self._passes is not None:
            scale = norm.weight.double() / (variance + norm.eps).sqrt()
            self._scale, self._shift = scale.float(), (norm.bias - mean * scale).float()

    @classmethod
    def of(cls, norm: GroupNorm, x: Tensor) -> _Normalisation:
        """The normalisation of a map (1, C, H, W)."""
        _, channels, height, width = x.shape
        strips = list(_strips(height, channels * width * x.element_size()))
        found = [kernels.channel_statistics(x[:, :, strip.start : strip.stop]) for strip in strips]
        means, variances = (torch.stack(each) for each in zip(*found, strict=True))  # (strips, C)
        shares = torch.tensor([(strip.stop - strip.start) / height for strip in strips], dtype=torch.float64)[:, None]
        size = channels // norm.num_groups
        mean = (shares * means).sum(0).view(-1, size).mean(1).repeat_interleave(size)
        spread = (shares * (variances + (means - mean).square())).sum(0)
        variance = spread.view(-1, size).mean(1).repeat_interleave(size)
        return cls(mean, variance, norm, x.dtype)

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """Writes the normalised rows, (1, C, rows, W), in one pass."""
        kernels.scale_channels(out, rows, self._mean, self._variance, self._weight, self._bias, self._eps)

    def activate(self, rows: Tensor, out: Tensor) -> None:
        """Writes SiLU of the normalised rows, (1, C, rows, W): in one pass where there is one, else in two."""
        if self._passes is not None and all(part.is_contiguous(memory_format=_LAST) for part in (rows, out)):
            self._passes.activated(rows, self._scale, self._shift, out)
        else:
            self(rows, out)
            F.silu(out, inplace=True)


def _activated(norm: GroupNorm, x: Tensor) -> Iterator[tuple[_Strip, Tensor]]:
    """The strips of a map, normalised and activated, each with one row above and one below: beyond the map's edges they
    are zero. All of them come in the same memory.
    """
    normalise = _Normalisation.of(norm, x)
    _, channels, height, width = x.shape
    strips = list(_strips(height, channels * width * x.element_size()))
    memory = _new(x, channels, max(strip.stop - strip.start for strip in strips) + 2, width)
    for strip in strips:
        part = memory[:, :, : strip.stop - strip.start + 2]
        for there, row in ((strip.above, 0), (strip.below, part.shape[2] - 1)):
            if not there:
                part[:, :, row] = 0
        inside = part[:, :, 1 - strip.above : part.shape[2] - 1 + strip.below]
        normalise.activate(x[:, :, strip.start - strip.above : strip.stop + strip.below], inside)
        yield strip, part


Allocate = Callable[[Tensor, int, int, int], Tensor]


def _convolved(norm: GroupNorm, x: Tensor, conv: nn.Module, allocate: Allocate) -> Tensor:
    """Norm, SiLU, convolution of x (1, C, H, W) -> (1, C', H, W), in memory that `allocate` gives if it takes several
    strips.
    """
    out: Tensor | None = None
    for strip, part in _activated(norm, x):
        rows = _padded(conv, part, (0, 1))
        if strip.whole:
            return rows
        out = allocate(x, rows.shape[1], *x.shape[2:]) if out is None else out
        out[:, :, strip.start : strip.stop] = rows
        del rows  # before those of the next strip are made
    assert out is not None
    return out


def _add_convolved(norm: GroupNorm, x: Tensor, conv: nn.Module, total: Tensor) -> None:
    """Adds norm, SiLU, convolution of x (1, C, H, W) to `total`, of the convolution's shape, in place."""
    for strip, part in _activated(norm, x):
        rows = total[:, :, strip.start : strip.stop]
        if isinstance(conv, PrepackedConv2d):
            conv.add_to(rows, part, (0, 1))
        else:
            rows += _padded(conv, part, (0, 1))


def _padded(conv: nn.Module, x: Tensor, padding: tuple[int, int]) -> Tensor:
    """A convolution with another padding of (rows, columns) than its own."""
    if isinstance(conv, PrepackedConv2d):
        return conv.padded(x, padding)
    assert isinstance(conv, nn.Conv2d)
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding)
