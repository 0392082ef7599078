"""How much memory there is, and how many requests it holds.

Everything a request takes is known before it runs: keys and values for its tokens, activations of one forward pass, and
those of one pass of the autoencoder, which a large image makes the largest. The engine works in passes of limited
size and lets requests wait whose cache finds no room; what could never run is refused at the door.
"""

from __future__ import annotations

from dataclasses import dataclass

from bagel_mot.inference.api import Bagel
from bagel_mot.placement.system_memory import free_memory

MARGIN = 0.15
"""Share of the free memory that is left alone."""
_CACHE_SHARE, _PREFIX_SHARE = 0.6, 0.2  # of what may be used: all caches, and of these the ones kept for later requests
_MOST_TOKENS = 1 << 22  # of cache, however much memory there is
_LIVE_MAPS = 6  # feature maps of full size that the autoencoder holds at once, float32


@dataclass(frozen=True)
class Capacity:
    """What fits into the memory at hand.

    Attributes:
        cache_tokens: of cache, for all requests at work together.
        prefix_tokens: of cache, kept for requests to come.
        step_tokens: most tokens of one forward pass.
        step_pixels: most pixels of one pass of the autoencoder; a larger image is refused.
    """

    cache_tokens: int
    prefix_tokens: int
    step_tokens: int
    step_pixels: int


def capacity(bagel: Bagel, memory: int | None = None) -> Capacity:
    """
    Args:
        bagel: loaded; its weights are not counted.
        memory: bytes to be used; what is free, less a margin, if not given.
    """
    config, itemsize = bagel.config, bagel.dtype.itemsize
    decoder = config.decoder
    usable = int(free_memory(bagel.device) * (1 - MARGIN)) if memory is None else memory
    per_token = decoder.num_layers * 2 * decoder.num_kv_heads * decoder.head_dim * itemsize
    cache = min(int(usable * _CACHE_SHARE) // per_token, _MOST_TOKENS)
    # One layer's activations are alive at a time; norms and rotary positions are worked out in float32.
    widths = 2 * decoder.num_heads * decoder.head_dim + 3 * decoder.intermediate_size + 4 * decoder.hidden_size
    activations = widths * itemsize + 4 * decoder.hidden_size * 4
    rest = usable - cache * per_token
    return Capacity(
        cache_tokens=cache - int(cache * _PREFIX_SHARE),
        prefix_tokens=int(cache * _PREFIX_SHARE),
        step_tokens=max(1, min(32768, rest // 2 // activations)),
        step_pixels=min(4 << 20, rest // 2 // (config.vae.ch * 4 * _LIVE_MAPS)),
    )
