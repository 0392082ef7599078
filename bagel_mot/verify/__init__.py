"""`bagel verify`: does this code compute what was recorded?

A folder of recorded cases holds a small checkpoint, images, `cases.json` (what was done) and `expected.safetensors`
(what came out, as tensors named "CASE/QUANTITY"); `tests/golden/README.md` describes it. Every case is computed anew by
the very code that serves users and trains, and every recorded quantity becomes one `Row`. A recorded tensor that no row
looked at is a failing row, as is a case of a kind that is not known, or one in which nothing was compared: nothing
passes by being skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bagel_mot.checkpoint.official import load_checkpoint
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.loading import choose_device
from bagel_mot.sequence import PackSpec
from bagel_mot.verify import parts, training
from bagel_mot.verify.interleave import check_interleave
from bagel_mot.verify.parts import Subject
from bagel_mot.verify.records import Case, Checker, Recorded, Row

__all__ = ["KINDS", "TOLERANCE", "Report", "Row", "verify"]

TOLERANCE = 1e-5
KINDS: dict[str, Callable[[Subject, Checker], None]] = {
    "tokenize": parts.check_tokenize,
    "resize": parts.check_resize,
    "transform": parts.check_transform,
    "vit": parts.check_vit,
    "vae": parts.check_vae,
    "interleave": check_interleave,
    "train": training.check_train,
    "pack": training.check_pack,
}


@dataclass
class Report:
    """All rows of a folder."""

    folder: str
    device: str
    dtype: str
    tolerance: float
    rows: list[Row] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if not row.passed]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and not self.failed

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "device": self.device,
            "dtype": self.dtype,
            "tolerance": self.tolerance,
            "torch": torch.__version__,
            "passed": self.passed,
            "failed": len(self.failed),
            "rows": [row.to_json() for row in self.rows],
        }


def verify(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float = TOLERANCE,
    progress: Callable[[Case], None] | None = None,
) -> Report:
    """Computes every case of a folder of recorded cases, and compares.

    Args:
        folder: laid out as `tests/golden` is.
        device, dtype: what to compute with. Recorded numbers are float32: coarser types need a larger tolerance.
        tolerance: the largest relative error of floats that passes.
        progress: called with each case before it is computed.

    Raises:
        DataError, CheckpointError: the folder lacks a file, or one is damaged.
        DeviceError: this machine has no such device.
    """
    device = choose_device(device)
    recorded = Recorded(folder)
    checkpoint = load_checkpoint(recorded.folder / "checkpoint", precision=dtype, device=device)
    spec = PackSpec.of(checkpoint.config, checkpoint.special)
    defaults = Defaults(vae_transform=recorded.transforms["vae"], vit_transform=recorded.transforms["vit"])
    subject = Subject(recorded, checkpoint, spec, Bagel(checkpoint, defaults=defaults))
    report = Report(str(folder), str(device), str(dtype).removeprefix("torch."), tolerance)
    seen: set[str] = set()
    with _exact_float32():
        for case in recorded.cases:
            if progress is not None:
                progress(case)
            check = Checker(case, recorded.tensors, tolerance)
            run = KINDS.get(case["kind"])
            if run is None:
                check.fail("kind", f"kind {case['kind']!r} is not supported; known: {', '.join(KINDS)}")
            else:
                _run(run, subject, check)
                if all(row.passed and row.error is None for row in check.rows):
                    check.fail("case", "nothing was compared")
            report.rows += check.rows
            seen |= check.seen
    for key in sorted(recorded.tensors.keys() - seen):
        case_name, _, quantity = key.partition("/")
        report.rows.append(Row(case_name, quantity, None, False, "recorded, but nothing computes it"))
    return report


def _run(run: Callable[[Subject, Checker], None], subject: Subject, check: Checker) -> None:
    """One case. Whatever stops it is a failing row: the other cases still tell their part."""
    try:
        run(subject, check)
    except KeyError as error:
        check.fail("case", f"cases.json does not give {error}")
    except Exception as error:  # the code under test may fail in any way; the report must come out all the same
        check.fail("case", f"{type(error).__name__}: {error}")


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Without TF32, whose ten bits of mantissa would pass for float32 on CUDA."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    try:
        matmul.allow_tf32 = convolution.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
