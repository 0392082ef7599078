"""Work between matmuls on the CPU, each piece of it in one pass over memory.

PyTorch's own operations read and write whole tensors for every step of a norm, a rotation or a gate: at 0.5b widths in
bfloat16 that was more than a third of a denoising step. And its attention is made for many queries: the next tokens of
texts, each of which has a context of its own, would be padded to the longest or computed one after another. The passes
here are C++ (`passes.cpp`, and for quantised weights `quant/rounding.cpp` and `quant/products.cpp`; no library but the
C++ one), compiled in a few seconds when the first large model is loaded, and kept in the user's cache.
(`torch.compile` makes as good ones of the elementwise work, but took 26 seconds the first time and five in every
process.) Where there is no compiler, or the passes do not compute what they should, or are clearly slower, PyTorch's
operations serve.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model.kernels import scale_channels
from bagel_mot.model.measuring import shortest

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_IN_ANY_ORDER = (*_FLAGS, "-fno-signed-zeros", "-fassociative-math")
_SOURCES = {
    # Sums may take any order; infinities and NaN stay what they are.
    Path(__file__).with_name("passes.cpp"): _IN_ANY_ORDER,
    Path(__file__).parent / "quant" / "products.cpp": _IN_ANY_ORDER,
    # Every operation is as it is written, to the bit.
    Path(__file__).parent / "quant" / "rounding.cpp": (*_FLAGS, "-ffp-contract=off"),
}
_HEADER = Path(__file__).with_name("lanes.h")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_PATIENCE = 60  # seconds that a compiler may take
_ROWS = 256  # that passes are tried with
_CLEARLY = 1.5  # times as long as PyTorch's operations: too slow
LEAST_WIDTH = 512
"""Models of narrower hidden states are not worth a compiler's second."""


class Passes:
    """The compiled passes for activations of one type on the CPU, for inference alone."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        pointer, count, number, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int

        def function(name: str, *arguments: Any) -> Any:
            found = getattr(library, f"{name}_{TYPES[dtype]}")
            found.argtypes, found.restype = arguments, None
            return found

        self._norm = function("norm", *[pointer] * 3, count, count, number, whole)
        self._heads = function("heads", *[pointer] * 7, *[count] * 5, number, whole)
        self._gated = function("gated", pointer, pointer, count, count, whole)
        self._activated = function("activated", *[pointer] * 4, count, count, whole)
        self._attend = function("attend", *[pointer] * 4, *[count] * 3, pointer, count, pointer, *[count] * 4, whole)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of (T, size), contiguous -> (T, size)"""
        out = torch.empty_like(x)
        rows, size = x.shape
        self._norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, size, eps, torch.get_num_threads())
        return out

    def heads(
        self, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, rope: tuple[Tensor, Tensor], q_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and rotated queries and keys, and values as they are.

        Args:
            qkv: (T, width), contiguous: heads of queries, then as many of keys as of values.
            q_weight, k_weight: (head_dim,) weights of the norms.
            eps: ε of the norms.
            rope: see `bagel_mot.model.decoder.rope`.
            q_heads: the number of heads of queries.

        Returns: (T, heads, head_dim) each.
        """
        (rows, width), dim = qkv.shape, q_weight.shape[0]
        k_heads = (width // dim - q_heads) // 2
        q, k = qkv.new_empty(rows, q_heads, dim), qkv.new_empty(rows, k_heads, dim)
        places = (part.data_ptr() for part in (qkv, q_weight, k_weight, *rope, q, k))
        self._heads(*places, rows, q_heads, k_heads, dim, width, eps, torch.get_num_threads())
        return q, k, qkv.as_strided((rows, k_heads, dim), (width, dim, 1), (q_heads + k_heads) * dim)

    def gated(self, gate_up: Tensor) -> Tensor:
        """SiLU of the first half of (T, 2·size), contiguous, times the second -> (T, size)"""
        rows, width = gate_up.shape
        out = gate_up.new_empty(rows, width // 2)
        self._gated(gate_up.data_ptr(), out.data_ptr(), rows, width // 2, torch.get_num_threads())
        return out

    def activated(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
        """Writes SiLU(x · scale + shift) to `out`.

        Args:
            x, out: (1, C, H, W), contiguous in channels_last.
            scale, shift: float32 (C,).
        """
        _, channels, height, width = x.shape
        places = (part.data_ptr() for part in (x, scale, shift, out))
        self._activated(*places, height * width, channels, torch.get_num_threads())

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, rows: Tensor, pieces: Tensor, layer: int
    ) -> None:
        """Attention of single new tokens, each over pieces of memory that end with its own place.

        Args:
            query: (S, heads, head_dim), whose heads lie one after another, as those of `key` and `value` do.
            key, value: (S, kv_heads, head_dim), which are written to the last place of each token's pieces.
            out: (S, heads, head_dim), contiguous: where what the tokens attend to is written.
            rows: int64 (R, 2): the slot of a token among S, and the number of its pieces.
            pieces: int64 (P, 4) of all rows, one after another: see `bagel_mot.model.cache.Slab.address`, and the
                number of tokens in it.
            layer: the layer whose keys and values are read.
        """
        _, heads, dim = query.shape
        places = (part.data_ptr() for part in (query, key, value, out))
        strides = query.stride(0), key.stride(0), value.stride(0)
        tables = rows.data_ptr(), rows.shape[0], pieces.data_ptr()
        self._attend(*places, *strides, *tables, layer, heads, key.shape[1], dim, torch.get_num_threads())


def call_compiled(name: str, *arguments: Tensor | int | None) -> int:
    """Calls a function of the compiled passes, which takes the number of threads after its own arguments.

    Args:
        name: the function's name.
        arguments: tensors of any shape, of which it is given the places, whole numbers of 64 bits, and None for a place
            that there is not.

    Returns: what it gives back, if it gives anything back.

    Raises:
        RuntimeError: there are no compiled passes here.
    """
    library = compiled()
    if library is None:
        raise RuntimeError("there are no compiled passes here")
    given = [
        ctypes.c_int64(part) if isinstance(part, int) else ctypes.c_void_p(None if part is None else part.data_ptr())
        for part in arguments
    ]
    found: int = getattr(library, name)(*given, ctypes.c_int(torch.get_num_threads()))
    return found


@cache
def compiled() -> ctypes.CDLL | None:
    """The library of passes, compiled unless this user's cache has it; None where that cannot be done."""
    try:
        found = _compiler_and_place()
        if found is None:
            return None
        compiler, place = found
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, place)
        # Its threads are those of the library that PyTorch has loaded for all.
        return ctypes.CDLL(str(place), mode=os.RTLD_NOW)
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def to_be_compiled() -> bool:
    """Whether the passes can be compiled here, and this user's cache has none yet: then `compiled` takes seconds."""
    try:
        found = _compiler_and_place()
        return found is not None and not found[1].is_file()
    except (OSError, RuntimeError):
        return False


def _compiler_and_place() -> tuple[str, Path] | None:
    """The compiler, and the library's place in this user's cache; None where passes cannot be compiled.

    Raises:
        OSError, RuntimeError: the processor is not known, or the user has no home.
    """
    if not sys.platform.startswith("linux"):  # elsewhere compilers come without the OpenMP that PyTorch has
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    kept = {line for line in processor.splitlines() if line.startswith(("model name", "flags", "Features"))}
    facts = [torch.__version__, compiler, *sorted(kept), _HEADER.read_text(encoding="utf-8")]
    for source, flags in _SOURCES.items():
        facts += [*flags, source.read_text(encoding="utf-8")]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return compiler, Path(base) / "bagel_mot" / f"passes-{name}.so"


def _compile(compiler: str, place: Path) -> None:
    """Compiles the passes into a library. It is linked apart: linked as it is compiled, it would bring another OpenMP
    with threads of its own, and the compiler's start-up code, which changes how small numbers are computed.
    """
    with tempfile.TemporaryDirectory(dir=place.parent) as folder, ThreadPoolExecutor(len(_SOURCES)) as together:

        def run(arguments: Sequence[str]) -> None:
            subprocess.run([compiler, *arguments], check=True, capture_output=True, timeout=_PATIENCE)

        made = {
            str(Path(folder) / f"{source.stem}.o"): [*flags, "-c", str(source)] for source, flags in _SOURCES.items()
        }
        list(together.map(lambda item: run([*item[1], "-o", item[0]]), made.items()))
        library = Path(folder) / "passes.so"
        run(["-shared", *made, "-o", str(library)])
        library.replace(place)


@cache
def passes_for(dtype: torch.dtype, hidden: int, intermediate: int, head_dim: int) -> Passes | None:
    """The passes for such activations, where they are to be had here, are right, and are not clearly slower than
    PyTorch's operations at these widths; else None.
    """
    if dtype not in TYPES or head_dim % 2 or (library := compiled()) is None:
        return None
    found = Passes(library, dtype)
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)

        def example(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        x, weight, eps = example(_ROWS, hidden), example(hidden), 1e-6
        qkv, small = example(_ROWS, 4 * head_dim), example(head_dim)
        rope = example(_ROWS, 1, head_dim).float(), example(_ROWS, 1, head_dim).float()
        both = example(_ROWS, 2 * intermediate)
        memory = example(2, 2, _ROWS, head_dim)  # keys and values of two heads
        rows, pieces = torch.tensor([[0, 1]]), torch.tensor([[memory.data_ptr(), 0, _ROWS, _ROWS]])
        heads = qkv.view(_ROWS, 4, head_dim)

        def attended() -> Tensor:
            out, (key, value) = qkv.new_empty(1, 4, head_dim), memory[:, None, :, -1].contiguous().unbind()
            found.attend(heads[:1], key, value, out, rows, pieces, 0)
            return out

        def plainly_attended() -> Tensor:
            query = heads[:1].view(1, 2, 2, head_dim)
            return F.scaled_dot_product_attention(query, memory[:1], memory[1:]).view(1, 4, head_dim)

        def plain_heads() -> Tensor:
            normed = torch.rms_norm(heads[:, :3], (head_dim,), small, eps)
            rotated = torch.addcmul(normed * rope[0], normed.roll(head_dim // 2, -1), rope[1]).to(dtype)
            return torch.cat([rotated, heads[:, 3:]], 1)

        return _taken(
            found,
            (lambda: found.norm(x, weight, eps), lambda: torch.rms_norm(x, (hidden,), weight, eps)),
            (lambda: torch.cat(found.heads(qkv, small, small, eps, rope, 2), 1), plain_heads),
            (attended, plainly_attended),
            (lambda: found.gated(both), lambda: F.silu(both[:, :intermediate]) * both[:, intermediate:]),
        )


@cache
def activation_for(dtype: torch.dtype, channels: int) -> Passes | None:
    """The passes for feature maps of so many channels, under the same conditions."""
    if dtype not in TYPES or (library := compiled()) is None:
        return None
    found = Passes(library, dtype)
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, channels, 16, _ROWS // 16, generator=generator).to(dtype)
        x = x.to(memory_format=torch.channels_last)
        scale = shift = torch.linspace(0.1, 1, channels)
        mine, plain = torch.empty_like(x), torch.empty_like(x)
        unmoved = torch.zeros(channels), torch.ones(channels)

        def in_one() -> Tensor:
            found.activated(x, scale, shift, mine)
            return mine

        def in_two() -> Tensor:
            scale_channels(plain, x, *unmoved, scale, shift, 0.0)
            return F.silu(plain, inplace=True)

        return _taken(found, (in_one, in_two))


def _taken(found: Passes, *pairs: tuple[Callable[[], Tensor], Callable[[], Tensor]]) -> Passes | None:
    """The passes, if each computes what PyTorch's operations do and is not clearly slower; else None."""
    for mine, plain in pairs:
        if not torch.allclose(mine().float(), plain().float(), rtol=0.02, atol=0.02) or clearly_slower(mine, plain):
            return None
    return found


def clearly_slower(mine: Callable[[], object], plain: Callable[[], object]) -> bool:
    """Whether a call clearly takes longer than another. What passes are chosen is to depend on the machine, and not on
    what else it does at the moment: results differ in their last digits.
    """
    seconds = shortest({"mine": mine, "plain": plain}, turns=8)
    return seconds["mine"] > _CLEARLY * seconds["plain"]
