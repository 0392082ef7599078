"""`bagel verify`: a comparison of this code's results with recorded ones.

A folder of recorded cases holds a small checkpoint, images, `cases.json` (the inputs) and `expected.safetensors` (the
results, as tensors named "CASE/QUANTITY"); `tests/golden/README.md` describes it. Every case is computed anew by the
very code that serves users and trains, and every recorded quantity becomes one `Comparison`, a row of the report. A
recorded tensor that was never compared is a failing row, and so is a case of an unknown kind, or one in which nothing
was compared: nothing passes by being skipped.
"""

from __future__ import annotations

from collections import Counter
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
from bagel_mot.verify.data import verify_data
from bagel_mot.verify.data.recorded import is_data_set
from bagel_mot.verify.golden_eval import is_golden_eval, verify_golden_eval
from bagel_mot.verify.interleave import check_interleave
from bagel_mot.verify.parts import Subject
from bagel_mot.verify.records import Case, Checker, Comparison, Recorded

__all__ = ["CASE_KINDS", "ON_ACCELERATORS", "TOLERANCE", "Comparison", "VerifyReport", "verify"]

TOLERANCE, ON_ACCELERATORS = 1e-5, 1e-4
CASE_KINDS: dict[str, Callable[[Subject, Checker], None]] = {
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
class VerifyReport:
    """All comparisons of a folder."""

    folder: str
    device: str
    dtype: str
    tolerance: float
    rows: list[Comparison] = field(default_factory=list)

    @property
    def failed(self) -> list[Comparison]:
        return [row for row in self.rows if not row.passed]

    @property
    def differing(self) -> dict[str, int]:
        """The number of rows by the quirk of the published program that is not followed, by its name."""
        return dict(Counter(row.differs for row in self.rows if row.differs))

    @property
    def by_part(self) -> dict[str, tuple[int, int]]:
        """The numbers of rows that pass and of all rows by benchmark and kind, where scores are recorded."""
        parts: dict[str, tuple[int, int]] = {}
        for row in self.rows if is_golden_eval(Path(self.folder)) else ():
            name = " ".join(row.case.split("/")[:2])
            good, every = parts.get(name, (0, 0))
            parts[name] = good + row.passed, every + 1
        return parts

    @property
    def passed(self) -> bool:
        return bool(self.rows) and not self.failed

    def to_json(self) -> dict[str, Any]:
        summary: dict[str, Any] = {"torch": torch.__version__, "passed": self.passed, "failed": len(self.failed)}
        summary["differing"] = self.differing
        if parts := self.by_part:
            summary["parts"] = {name: {"passed": good, "of": every} for name, (good, every) in parts.items()}
        return {**vars(self), **summary, "rows": [row.to_json() for row in self.rows]}


def verify(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    progress: Callable[[Case], None] | None = None,
) -> VerifyReport:
    """Computes every case of a folder of recorded cases and compares the results.

    Args:
        folder: a folder laid out as `tests/golden` is, or as `tests/golden-data`: recorded data, which are judged as
            `bagel_mot.verify.data` says; or as `tests/golden-eval`: recorded scores, as `bagel_mot.verify.golden_eval`
            says. For both of these device, type and tolerance mean nothing.
        device, dtype: the device and precision to compute with. Recorded numbers are float32: coarser types need a
            larger tolerance.
        tolerance: the largest relative error of floats that passes; by default 1e-5 on the CPU and 1e-4 elsewhere,
            where sums are made in another order.
        progress: a callback that receives each case before it is computed.

    Raises:
        DataError, CheckpointError: the folder lacks a file, or one is damaged.
        DeviceError: this machine has no such device.
    """
    device = choose_device(device)
    if tolerance is None:
        tolerance = TOLERANCE if device.type == "cpu" else ON_ACCELERATORS
    if is_data_set(Path(folder)):
        rows = verify_data(Path(folder), progress)
        return VerifyReport(str(folder), "cpu", "float32", tolerance, rows)
    if is_golden_eval(Path(folder)):
        rows = verify_golden_eval(Path(folder), progress)
        return VerifyReport(str(folder), "cpu", "float32", tolerance, rows)
    recorded = Recorded(folder)
    checkpoint = load_checkpoint(recorded.folder / "checkpoint", precision=dtype, device=device)
    spec = PackSpec.of(checkpoint.config, checkpoint.special)
    defaults = Defaults(vae_transform=recorded.transforms["vae"], vit_transform=recorded.transforms["vit"])
    subject = Subject(recorded, checkpoint, spec, Bagel(checkpoint, defaults=defaults))
    report = VerifyReport(str(folder), str(device), str(dtype).removeprefix("torch."), tolerance)
    seen: set[str] = set()
    with subject.bagel.engine.threads.at_work(), _exact_float32():
        for case in recorded.cases:
            if progress is not None:
                progress(case)
            check = Checker(case, recorded.tensors, tolerance)
            run = CASE_KINDS.get(case["kind"])
            if run is None:
                check.fail("kind", f"kind {case['kind']!r} is not supported; known: {', '.join(CASE_KINDS)}")
            else:
                _run(run, subject, check)
                if all(row.passed and row.error is None for row in check.rows):
                    check.fail("case", "nothing was compared")
            report.rows += check.rows
            seen |= check.seen
    for key in sorted(recorded.tensors.keys() - seen):
        case_name, _, quantity = key.partition("/")
        report.rows.append(Comparison(case_name, quantity, None, False, "recorded, but nothing computes it"))
    return report


def _run(run: Callable[[Subject, Checker], None], subject: Subject, check: Checker) -> None:
    """Runs one case. Any error becomes a failing row, and the other cases still run."""
    try:
        run(subject, check)
    except KeyError as error:
        check.fail("case", f"cases.json does not give {error}")
    except Exception as error:  # the code under test may fail in any way; the report must come out all the same
        check.fail("case", f"{type(error).__name__}: {error}")


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Switches off TF32, which has ten bits of mantissa and is used for float32 matmuls on CUDA."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    try:
        matmul.allow_tf32 = convolution.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
