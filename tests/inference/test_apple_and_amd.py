"""Apple's and AMD's devices, feigned: which device and which types are chosen there. ROCm's devices are called cuda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint.opening import open_checkpoint, stored_weights
from bagel_mot.checkpoint.precision import check_hardware, parse_precision
from bagel_mot.cli.versions import versions
from bagel_mot.errors import DeviceError
from bagel_mot.inference import loading
from bagel_mot.inference.loading import automatic_precisions, choose_device, choose_precision, usable_devices
from bagel_mot.model import kernels
from bagel_mot.parallel.float8 import check_float8

MPS, CUDA = torch.device("mps"), torch.device("cuda")


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A Mac; the list holds the version of its system, which may be changed."""
    version = [15]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (version[0], 0) >= (major, minor))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return version


@pytest.fixture
def rocm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a GPU of AMD's."""
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "AMD Instinct MI300X")
    monkeypatch.setattr(kernels, "multiplies_in_float8", lambda device: False)  # its float8 is another
    kernels.has_float8_matmul.cache_clear()
    yield
    kernels.has_float8_matmul.cache_clear()


def test_a_mac_has_mps(macos: list[int]) -> None:
    assert choose_device("auto") == MPS
    assert usable_devices() == [MPS, torch.device("cpu")]
    assert "mps" in versions()["devices"]
    with pytest.raises(DeviceError, match="PyTorch finds 0 CUDA devices here"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("version", "limit", "expected"),
    [
        (15, 10**9, torch.bfloat16),
        (14, 1, torch.bfloat16),
        (13, 10**9, torch.float32),
        (13, 1, torch.float16),
    ],
)
def test_bfloat16_on_a_mac_takes_macos_14(
    golden: Any, monkeypatch: pytest.MonkeyPatch, macos: list[int], version: int, limit: int, expected: torch.dtype
) -> None:
    monkeypatch.setattr(loading, "_LARGE", limit)
    macos[0] = version
    stored = stored_weights(open_checkpoint(golden.checkpoint))
    assert choose_precision("auto", MPS, stored).activations is expected
    names = automatic_precisions(stored, [MPS], prefer="memory")
    assert all("float16" in name.replace("bfloat16", "") for name in names) == (version == 13)


@pytest.mark.parametrize("precision", ["fp8", "fp8-dynamic", "int8-dynamic"])
def test_what_a_mac_cannot_is_refused(macos: list[int], precision: str) -> None:
    with pytest.raises(DeviceError, match=f"{precision}.*(mps|FP8)"):
        check_hardware(parse_precision(precision), MPS)


@pytest.mark.parametrize("precision", ["int8", "int4", "nf4", "bfloat16", "float16", "float32"])
def test_what_a_mac_can(macos: list[int], precision: str) -> None:
    check_hardware(parse_precision(precision), MPS)


def test_a_gpu_of_amds_is_a_cuda_device_to_pytorch(golden: Any, rocm: None) -> None:
    assert choose_device("auto") == CUDA
    stored = stored_weights(open_checkpoint(golden.checkpoint))
    assert choose_precision("auto", CUDA, stored).activations is torch.bfloat16


def test_another_float8_is_refused_by_name(rocm: None) -> None:
    with pytest.raises(DeviceError, match="fp8-dynamic.*this is AMD Instinct MI300X: use 'fp8'"):
        check_hardware(parse_precision("fp8-dynamic"), CUDA)
    check_hardware(parse_precision("fp8"), CUDA)
    with pytest.raises(DeviceError, match="enable_float8 is true, but AMD Instinct MI300X does not"):
        check_float8(CUDA)


def test_the_version_of_rocm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4.2")
    assert versions()["cuda"] == "ROCm 6.4.2"


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (4.0, False)])
def test_float8_is_believed_when_its_numbers_come_out(
    monkeypatch: pytest.MonkeyPatch, factor: float, right: bool
) -> None:
    """The other float8 has half the values for the same bits, so that products are a fourth, or four times as large."""

    def multiply(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
        return (factor * (x.float() @ weight.float()) * x_scale * weight_scale).to(dtype)

    monkeypatch.setattr(kernels, "float8_matmul", multiply)
    assert kernels.multiplies_in_float8(torch.device("cpu")) == right
