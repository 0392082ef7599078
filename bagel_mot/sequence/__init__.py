"""Segments and their packing into one sequence.

A sample is a list of segments: text, ViT images and VAE images. Packing lays the tokens of many samples out for one
forward pass. Three orders of the same tokens matter:

- **sequence order** is the order of the sample: it decides who sees whom and the order of keys in a cache;
- **slots** are where tokens are computed: within each row first all tokens of the *und* expert (text, ViT, image
  markers), then all tokens of the *gen* expert (VAE latents), so that each expert's matmuls run on one contiguous
  slice. Tokens are brought into slots once, here, and never moved inside a layer;
- **rows** are independent stretches of attention. The published layout is one long row; many short rows cost less
  attention where no block-sparse kernel exists.

The result has two parts. A **layout** says where every token stands; it never changes and serves as many forward passes
as the same segments are run. The **values** are what changes between them: patches, latents and timesteps.

A segment describes itself as runs of tokens (`TokenRun`), so packing knows no kind of segment. Nothing here knows of
networks: the result is plain tensors.
"""

from __future__ import annotations

from bagel_mot.sequence.layout import Layout, PackSpec, SegmentSpan, TrainingLayout, Values, Visibility, may_attend
from bagel_mot.sequence.packing import pack, pack_cached, table_index
from bagel_mot.sequence.segments import (
    CAUSAL,
    FULL,
    NOISED,
    TEXT,
    VAE,
    VIT,
    DroppedImage,
    FramesSegment,
    Grid,
    Sample,
    Segment,
    TextSegment,
    TokenRun,
    VaeSegment,
    VitSegment,
    segment_length,
    text_segment,
    vae_segment,
    vit_segment,
)

__all__ = [
    "CAUSAL",
    "FULL",
    "NOISED",
    "TEXT",
    "VAE",
    "VIT",
    "DroppedImage",
    "FramesSegment",
    "Grid",
    "Layout",
    "PackSpec",
    "Sample",
    "Segment",
    "SegmentSpan",
    "TextSegment",
    "TokenRun",
    "TrainingLayout",
    "VaeSegment",
    "Values",
    "Visibility",
    "VitSegment",
    "may_attend",
    "pack",
    "pack_cached",
    "segment_length",
    "table_index",
    "text_segment",
    "vae_segment",
    "vit_segment",
]
