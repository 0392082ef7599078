"""Ways of running a checkpoint: what fits, what is chosen, and that models run so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot import Bagel
from bagel_mot.checkpoint.opening import StoredWeights, open_checkpoint, stored_weights
from bagel_mot.config import NAMED_CONFIGS
from bagel_mot.errors import DeviceError, SettingError
from bagel_mot.inference import loading
from bagel_mot.placement.estimate import forward_bytes, graph_bytes, reference_workloads
from bagel_mot.placement.offload import BroughtLayer
from bagel_mot.placement.plan import Machine, Plan, choose, plans

CONFIG = NAMED_CONFIGS["7b-mot"]
ALL = ("generate", "edit", "understand")
PRECISIONS = ("bfloat16", "int8", "int4")
STORED = StoredWeights(layers=torch.bfloat16, embedding=torch.bfloat16)
CPU = torch.device("cpu")
GB = 10**9


def machine(*gpus: float, host: float = 64) -> Machine:
    devices = [(torch.device("cuda", i), int(free * GB)) for i, free in enumerate(gpus)]
    return Machine((*devices, (CPU, int(host * GB))), int(host * GB))


def best(here: Machine, tasks: tuple[str, ...] = ALL, **more: Any) -> Plan:
    return choose(plans(CONFIG, here, tasks, precisions=PRECISIONS, stored=STORED, **more), here)


@pytest.mark.parametrize(
    ("here", "precision", "where"),
    [
        (machine(80), "bfloat16", "cuda:0"),
        (machine(24, 24), "bfloat16", "cuda:0 and cuda:1"),
        (machine(24), "int8", "cuda:0"),
        (machine(host=64), "bfloat16", "cpu"),
        (machine(host=30), "int8", "cpu"),
    ],
    ids=["large GPU", "two GPUs", "one GPU", "large CPU", "CPU"],
)
def test_what_is_chosen(here: Machine, precision: str, where: str) -> None:
    plan = best(here)
    assert (plan.precision.name, plan.where) == (precision, where)


def test_small_gpus_have_layers_brought() -> None:
    plan = best(machine(12, host=64))
    assert plan.offload == "cpu"
    assert plan.peak_device <= 0.95 * 12 * GB
    resident = [
        sum(isinstance(p, torch.device) for p in best(machine(free)).placement.layers) for free in (11.5, 12, 13)
    ]
    assert resident == sorted(resident)


def test_recorded_passes_are_part_of_a_plan_where_they_find_room() -> None:
    wide = best(machine(80))
    tight = best(machine((wide.peak_device - 1) / 0.95 / GB))
    assert wide.graphs
    assert not tight.graphs
    assert (tight.precision, tight.where) == (wide.precision, wide.where), "it does without them rather than in less"
    more = {name: wide.device_bytes[name] - bytes_ for name, bytes_ in tight.device_bytes.items()}
    for name, bytes_ in more.items():
        workload = next(each for each in reference_workloads(CONFIG) if each.name == name)
        assert bytes_ == graph_bytes(CONFIG, workload, torch.bfloat16)
        if workload.drawn:  # what is alive in a denoising step, and a little
            tokens = workload.branches * 4096
            alive = forward_bytes(CONFIG.decoder, 2 * workload.branches, tokens, torch.bfloat16)
            assert alive < bytes_ < 1.3 * alive
    assert not best(machine(24, 24)).graphs, "not over several devices"
    assert not best(machine(12)).graphs, "nor where layers are brought"
    assert not best(machine(host=64)).graphs


def test_more_memory_never_fits_less() -> None:
    for precision in PRECISIONS:
        fits = []
        for half_gigabytes in range(20, 64):
            here = machine(half_gigabytes / 2, host=64)
            found = plans(
                CONFIG,
                here,
                ALL,
                precisions=(precision,),
                stored=STORED,
                offloads=("none", "cpu"),
            )
            fits.append(any(plan.fits for plan in found if plan.devices != (CPU,)))
        assert fits == sorted(fits), precision
        assert fits[-1]


def test_no_device_is_filled_beyond_its_margin() -> None:
    from bagel_mot.placement.estimate import DEVICE_BYTES, MARGIN, weight_bytes

    seen = 0
    for tenths in range(180, 241, 3):
        found = plans(CONFIG, machine(24, tenths / 10), ALL, precisions=("bfloat16",), offloads=("none",))
        for plan in (plan for plan in found if len(plan.devices) == 2):
            held = sum(place == plan.devices[1] for place in plan.placement.layers)
            layer = weight_bytes(CONFIG, plan.precision, ALL).layer
            work = plan.peak_device - weight_bytes(CONFIG, plan.precision, ALL).outside
            work -= sum(place == plan.devices[0] for place in plan.placement.layers) * layer
            assert work > DEVICE_BYTES
            assert work + held * layer <= (1 - MARGIN) * tenths / 10 * GB
            seen += 1
    assert seen > 3


def test_the_device_with_most_room_is_taken() -> None:
    assert best(machine(2, 79)).where == "cuda:1"
    assert best(machine(10, 79), ("understand",)).where == "cuda:1"


def test_answers_alone_are_not_read_from_the_disk_where_few_bits_fit() -> None:
    for host in (12, 14, 16, 18):
        plan = best(machine(host=host), ("understand",))
        assert (plan.precision.name in ("int8", "int4"), plan.offload) == (True, "none"), host


def test_what_does_not_fit_is_said_with_what_would() -> None:
    with pytest.raises(DeviceError, match=r"does not fit: there are 4 GB of main memory free.* takes .* GB"):
        best(machine(host=4))


def test_a_precision_asked_for_by_name_needs_room_for_small_work_only() -> None:
    here = machine(host=20)
    found = plans(CONFIG, here, ALL, precisions=("int8",), stored=STORED)
    with pytest.raises(DeviceError, match="does not fit"):
        choose(found, here)
    plan = choose(found, here, every_workload=False)
    assert plan.precision.name == "int8"
    assert "keep pictures small" in plan.sentence()


def test_fewer_tasks_take_less() -> None:
    understanding = best(machine(host=64), ("understand",))
    assert understanding.peak_host < 0.6 * best(machine(host=64)).peak_host
    assert list(understanding.host_bytes) == ["understand 980×980"]


def test_the_disk_is_only_for_what_is_stored_as_it_is_wanted() -> None:
    found = plans(
        CONFIG,
        machine(host=16),
        ALL,
        precisions=PRECISIONS,
        stored=STORED,
        offloads=("disk",),
    )
    assert {plan.precision.name for plan in found} == {"bfloat16"}
    assert not plans(CONFIG, machine(host=16), ALL, precisions=PRECISIONS, offloads=("disk",))


def test_weights_are_those_that_are_loaded() -> None:
    from bagel_mot.checkpoint.precision import parse_precision
    from bagel_mot.placement.estimate import weight_bytes

    for precision in ("bfloat16", "int8", "nf4", "int4,head=int8"):
        for tasks in (ALL, ("understand",), ("generate",)):
            bagel = Bagel.from_pretrained("mini", precision=precision, device="cpu", tasks=tasks)
            parts = [bagel.checkpoint.model]
            if tasks != ("understand",):
                parts.append(bagel.checkpoint.autoencoder)  # type: ignore[arg-type]
            held = {t.data_ptr(): t.nbytes for m in parts for t in (*m.parameters(), *m.buffers())}
            packed = sum(
                m.out_features * m.in_features * 2
                for m in bagel.checkpoint.model.modules()
                if "Prepacked" in type(m).__name__
            )
            predicted = weight_bytes(bagel.config, parse_precision(precision), tasks).total
            assert predicted == pytest.approx(sum(held.values()) + packed, rel=0.01), (precision, tasks)


def as_stored(golden: Any, folder: Path) -> Path:
    """The recorded checkpoint in bfloat16."""
    from bagel_mot.checkpoint.convert import convert

    convert(golden.checkpoint, folder, "bf16")
    return folder


def test_from_the_disk_as_from_memory(golden: Any, tmp_path: Path) -> None:
    folder = as_stored(golden, tmp_path / "bf16")
    memory, disk = (
        Bagel.from_pretrained(folder, precision="bfloat16", device="cpu", offload=offload)
        for offload in ("none", "disk")
    )
    assert all(isinstance(layer, BroughtLayer) for layer in disk.checkpoint.model.decoder.layers)
    assert disk.plan is not None
    assert disk.plan.offload == "disk"
    settings: dict[str, Any] = {"seed": 1, "num_timesteps": 3, "size": (32, 32)}
    first, second = (bagel.generate("a cat", **settings) for bagel in (memory, disk))
    difference = (torch.tensor(list(first.tobytes())).int() - torch.tensor(list(second.tobytes())).int()).abs()
    assert difference.float().mean() < 2  # the matmuls of packed weights round at other places
    assert isinstance(disk.ask(first, "What?", max_new_tokens=3), str)


def test_large_checkpoints_are_planned_for(golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = as_stored(golden, tmp_path / "bf16")
    assert Bagel.from_pretrained(folder, device="cpu").plan is None
    monkeypatch.setattr(loading, "_LARGE", 1)
    plan = Bagel.from_pretrained(folder, device="cpu").plan
    assert plan is not None
    assert (plan.precision.name, plan.where) == ("bfloat16", "cpu")
    assert "bfloat16 on cpu: at most" in plan.sentence()
    with pytest.raises(
        DeviceError, match=r"takes [\d.]+ MB of main memory \(\w+ on cpu[^;]*\); free memory, or load it"
    ):
        Bagel.from_pretrained(folder, device="cpu", memory="1MB")


def test_bad_places_and_sizes_are_refused() -> None:
    with pytest.raises(SettingError, match="offload is 'gpu'"):
        Bagel.from_pretrained("mini", offload="gpu")
    with pytest.raises(SettingError, match="'lots' is not a size"):
        Bagel.from_pretrained("mini", memory="lots")


def test_the_disk_takes_weights_as_they_are_stored(golden: Any, tmp_path: Path) -> None:
    plan = Bagel.from_pretrained(as_stored(golden, tmp_path / "bf16"), device="cpu", offload="disk").plan
    assert plan is not None
    assert (plan.precision.name, plan.offload) == ("bfloat16", "disk")  # not float32, as a small one has by itself
    with pytest.raises(DeviceError, match="its weights in bfloat16, and precision is 'int8'"):
        Bagel.from_pretrained(tmp_path / "bf16", device="cpu", offload="disk", precision="int8")


def test_layers_of_several_types_are_not_used_from_the_disk(golden: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = as_stored(golden, tmp_path / "bf16")
    [file] = folder.glob("ema*.safetensors")
    tensors = load_file(file)
    norm = next(name for name in tensors if "layers.0" in name and "norm" in name)
    save_file({**tensors, norm: tensors[norm].float()}, file)
    with pytest.raises(DeviceError, match="in several types or in few bits"):
        Bagel.from_pretrained(folder, device="cpu", offload="disk")
    assert Bagel.from_pretrained(folder, device="cpu", memory="20GB").plan is not None


def test_a_file_that_lacks_a_tensor_is_said_where_a_plan_is_made(golden: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from bagel_mot.errors import CheckpointError

    folder = as_stored(golden, tmp_path / "bf16")
    [file] = folder.glob("ema*.safetensors")
    save_file(load_file(folder / "ae.safetensors"), file)
    with pytest.raises(CheckpointError, match="lacks"):
        Bagel.from_pretrained(folder, device="cpu", memory="20GB")


def test_what_is_stored_in_few_bits_is_taken_so_where_it_fits(golden: Any, tmp_path: Path) -> None:
    from bagel_mot.checkpoint.convert import convert

    convert(golden.checkpoint, tmp_path / "int8", "int8")
    stored = stored_weights(open_checkpoint(tmp_path / "int8"))
    precisions = loading.automatic_precisions(stored, [CPU])
    assert precisions == ["int8", "int4", "nf4"]
    for host, precision in ((64, "int8"), (21, "int4")):
        here = machine(host=host)
        assert choose(plans(CONFIG, here, ALL, precisions=precisions, stored=stored), here).precision.name == precision


def test_few_bits_on_devices_without_bfloat16(golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bagel_mot.checkpoint.convert import convert

    convert(golden.checkpoint, tmp_path / "fp8", "fp8")
    stored = stored_weights(open_checkpoint(tmp_path / "fp8"))
    monkeypatch.setattr(loading, "_has_bfloat16", lambda device: False)
    found = loading.automatic_precisions(stored, [torch.device("cuda", 0)])
    assert found == [f"{name},activations=float16" for name in ("fp8", "int4", "nf4")]
    with pytest.raises(DeviceError, match="is not to be had on 'mps'"):
        loading.choose_precision("auto", torch.device("mps"), stored)
