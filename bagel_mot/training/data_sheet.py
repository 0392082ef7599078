"""Packed samples as a page that a person can read: every segment in order, its losses, and its images."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from bagel_mot.data.documents import IndexedSample, UnencodedImage
from bagel_mot.data.feed import SampleFeed, SampleMaker
from bagel_mot.data.streams import PackStream
from bagel_mot.data.supply import RowSupply, SampleGroup
from bagel_mot.data.workers import Workers
from bagel_mot.images import unpatchify
from bagel_mot.sequence import (
    CAUSAL,
    NOISED,
    DroppedImage,
    FramesSegment,
    Segment,
    TextSegment,
    VitSegment,
    segment_length,
)
from bagel_mot.training.open_data import OpenData

_SHOWN = 220  # pixels of the long side of an image on the page
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin:2rem 0 .3rem}
.facts{color:#666;font-size:.85rem;margin:0 0 .6rem}
.legend span,.tag{display:inline-block;border-radius:.3rem;padding:0 .4rem;font-size:.75rem;font-weight:600}
.sample{border-top:1px solid #ddd;padding-top:.3rem}
.row{display:flex;flex-wrap:wrap;gap:.6rem;align-items:flex-start}
.seg{border:1px solid #ccc;border-radius:.5rem;padding:.4rem .5rem;max-width:36rem}
.seg p{margin:.3rem 0 0;white-space:pre-wrap;overflow-wrap:anywhere}
.seg small{color:#666;display:block}
.loss{border:2px solid #188038;background:#e6f4ea}.image{border:2px solid #b06000;background:#fef7e0}
.dropped{border:2px dashed #999;color:#777}
.T{background:#e8eaed}.L{background:#188038;color:#fff}.N{background:#b06000;color:#fff}
.C{background:#d2e3fc}.V{background:#e9d2fd}.D{background:#eee}
mark{background:#ceead6;border-radius:.2rem}.next{background:#fde293}
img{display:block;margin-top:.3rem;max-width:100%;image-rendering:auto}
.bar{display:flex;height:.7rem;background:#eee;border-radius:.3rem;overflow:hidden;margin:.2rem 0 .5rem}
.bar i{display:block;border-right:1px solid #fff;background:#8ab4f8}.bar.gen i{background:#f9ab6d}
@media(prefers-color-scheme:dark){body{background:#1f1f1f;color:#eee}.seg,.sample{border-color:#555}
.loss{background:#12351d}.image{background:#3b2a0a}.tag.T,.tag.C,.tag.V,.tag.D,.legend .T,.legend .C,.legend .V,
.legend .D{color:#222}mark{color:#111}}
"""
_LEGEND = (
    ("T", "text, given"),
    ("L", "text, learnt"),
    ("N", "image to be drawn: noised, with loss"),
    ("C", "image given: clean latents"),
    ("V", "image given: ViT"),
    ("D", "left out by condition dropout"),
)


def sample_page(data: OpenData, seed: int, count: int) -> tuple[str, int]:
    """The samples of the first packs of a run as a page of HTML, which needs nothing beside it.

    Args:
        data: the data of a recipe.
        seed: the seed of the run.
        count: the number of samples.

    Returns: the page, and the number of samples on it.

    Raises:
        DataError: a file cannot be read, or sample after sample cannot be used.
    """
    maker = SampleMaker(tuple(group.supply for group in data.groups), data.builder, data.spec, seed)
    feed = SampleFeed(data.groups, data.source.mixture(f"{seed} 0 1"), Workers(maker, 0), seed)
    stream = PackStream(feed, data.spec, data.pack)
    parts: list[str] = []
    shown = packs = 0
    while shown < count:
        rows = stream.next_rows()
        packs += 1
        parts.append(f"<h2>Pack {packs}</h2>{''.join(_bars(row, data, number) for number, row in enumerate(rows))}")
        for sample in [sample for row in rows for sample in row][: count - shown]:
            shown += 1
            parts.append(_sample(sample, shown, data))
    skipped = feed.take_skipped()
    if skipped:
        items = "".join(f"<li>{_text(item.place)}: {_text(item.sentence)}</li>" for item in skipped)
        parts.append(f"<h2>Left out on the way</h2><ul>{items}</ul>")
    legend = " ".join(f'<span class="{name}">{name if name != "L" else "T"}</span> {about}' for name, about in _LEGEND)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Packed samples</title><style>{_STYLE}</style><h1>Packed samples</h1>"
        f'<p class="legend">{legend}</p>'
        "<p class=facts>Green marks what the words before predict; position is the rotary position at which a segment "
        f"begins.</p>{''.join(parts)}</html>"
    )
    return page, shown


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _bars(row: Sequence[IndexedSample], data: OpenData, number: int) -> str:
    """The slots of a row of a pack that are taken, of either expert, with a piece for each sample."""
    found = []
    for expert, total in zip(("und", "gen"), data.pack.slots([row]), strict=True):
        lengths = [getattr(sample, f"{expert}_len") for sample in row]
        pieces = "".join(f'<i style="width:{100 * length / max(total, 1):.2f}%"></i>' for length in lengths)
        found.append(
            f"<small>row {number + 1}, {expert}: {sum(lengths)} of {total} slots</small>"
            f'<div class="bar {expert}">{pieces}</div>'
        )
    return "".join(found)


def _sample(sample: IndexedSample, number: int, data: OpenData) -> str:
    group = _group_of(sample, data)
    place = group.supply.place_of(sample.index)
    facts = f"{sample.und_len} und + {sample.gen_len} gen tokens; {sample.length} before dropout"
    segments = "".join(_segments(sample, data))
    return (
        f'<div class="sample"><h2>{number}. {_text(sample.dataset or group.name)}</h2>'
        f'<p class="facts">{_text(place)} · {facts}</p><div class="row">{segments}</div></div>'
    )


def _group_of(sample: IndexedSample, data: OpenData) -> SampleGroup:
    """The group that a sample is from."""
    for group in data.groups:
        supply = group.supply
        if isinstance(supply, RowSupply) and any(dataset.name == sample.dataset for dataset in supply.datasets):
            return group
    return data.groups[0]


def _segments(sample: IndexedSample, data: OpenData) -> Iterator[str]:
    position = sample.position
    for segment in sample.segments:
        yield _segment(segment, position, data)
        position += segment.advance


def _segment(segment: Segment, position: int, data: OpenData) -> str:
    if isinstance(segment, DroppedImage):
        return (
            f'<div class="seg dropped"><span class="tag D">dropped</span><small>an image of {segment.length} tokens; '
            f"position {position}</small></div>"
        )
    attention = {CAUSAL: "causal", NOISED: "seen by itself alone"}.get(segment.mode, "full")
    facts = f"<small>{segment_length(segment)} tokens · position {position} · {attention}</small>"
    if isinstance(segment, TextSegment):
        learnt = bool(segment.labels)
        tag = '<span class="tag L">T, loss</span>' if learnt else '<span class="tag T">T</span>'
        return f'<div class="seg{" loss" if learnt else ""}">{tag}{facts}<p>{_words(segment, data)}</p></div>'
    if isinstance(segment, VitSegment):
        rows, columns = segment.grid
        side = data.builder.patch_size
        image = _pil(unpatchify(segment.patches, rows * side, columns * side, side).permute(1, 2, 0))
        return f'<div class="seg"><span class="tag V">V</span>{facts}{_img(image)}</div>'
    frames = segment.frames if isinstance(segment, FramesSegment) else (segment,)
    images = "".join(_img(_pil(frame.levels)) for frame in frames if isinstance(frame, UnencodedImage))
    name, about = ("N", "N, loss") if segment.mode == NOISED else ("C", "C")
    frame = "seg image" if name == "N" else "seg"
    return f'<div class="{frame}"><span class="tag {name}">{about}</span>{facts}{images}</div>'


def _words(segment: TextSegment, data: OpenData) -> str:
    """The text, with what is learnt marked, and the token that is to follow its end if that is learnt too."""
    text = _text(data.tokenizer.decode(segment.ids[1:-1]))
    own = len(segment.ids) - 1  # labels of the ids and of the end token
    marked = f"<mark>{text}⏎</mark>" if segment.first_label == 0 and len(segment.labels) >= own else text
    starts = segment.labels[-1:] == (data.spec.special.start_of_image,)
    return f'{marked} <mark class="next">→ an image starts</mark>' if starts else marked


def _pil(levels: Tensor) -> Image.Image:
    """An image of levels (H, W, 3)."""
    return Image.fromarray(levels.to(torch.uint8).contiguous().numpy())


def _img(image: Image.Image) -> str:
    size = f"{image.width}×{image.height}"
    small = image.copy()
    small.thumbnail((_SHOWN, _SHOWN))
    small.save(out := io.BytesIO(), "PNG", optimize=True)
    code = base64.b64encode(out.getvalue()).decode()
    scale = _SHOWN / max(small.size) if max(small.size) < _SHOWN else 1
    width = round(small.width * scale)
    return f'<img width="{width}" alt="{size}" src="data:image/png;base64,{code}"><small>{size}</small>'
