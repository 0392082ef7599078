"""Precisions by name, and models loaded in them: which parts, how near, and only what a task needs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot import Bagel
from bagel_mot.checkpoint.official import TASKS, load_checkpoint
from bagel_mot.checkpoint.precision import NAMES, QUANTISED, Precision, check_hardware, parse_precision
from bagel_mot.cli.weights import ALL_TASKS, PrecisionOption
from bagel_mot.config import NAMED_CONFIGS, VaeConfig
from bagel_mot.errors import CheckpointError, DeviceError, SettingError
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model import measuring, vae_precision
from bagel_mot.model.quant.linear import QuantisedEmbedding, QuantisedLinear
from bagel_mot.placement.estimate import weight_bytes

ASKED = "what is in the picture?"


@pytest.fixture(scope="module")
def plain() -> Bagel:
    return Bagel.from_pretrained("mini", precision="bfloat16")


@pytest.mark.parametrize(
    ("text", "parts", "activations", "autoencoder"),
    [
        ("float32", {}, torch.float32, None),
        ("int8", {"decoder": "int8"}, torch.bfloat16, None),
        ("int4, head=int8,vit=nf4", {"decoder": "int4", "head": "int8", "vit": "nf4"}, torch.bfloat16, None),
        ("fp8,activations=float16", {"decoder": "fp8"}, torch.float16, None),
        ("int8,autoencoder=float32", {"decoder": "int8"}, torch.bfloat16, torch.float32),
        ("float32,autoencoder=float32", {}, torch.float32, None),
        ("bfloat16,head=int8,autoencoder=bfloat16", {"head": "int8"}, torch.bfloat16, torch.bfloat16),
    ],
)
def test_names(text: str, parts: dict[str, str], activations: torch.dtype, autoencoder: torch.dtype | None) -> None:
    found = parse_precision(text)
    assert (dict(found.parts), found.activations, found.autoencoder) == (parts, activations, autoencoder)
    assert parse_precision(found.name) == found


@pytest.mark.parametrize("faster", [True, False])
def test_a_large_autoencoder_follows_the_model_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    monkeypatch.setattr(vae_precision, "faster_on_cpu", lambda channels: faster)
    large, small = NAMED_CONFIGS["7b-mot"].vae, VaeConfig(ch=32)
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    follows = torch.bfloat16 if faster else torch.float32
    for text in ("bfloat16", "int8", "nf4"):
        found = parse_precision(text)
        assert [found.autoencoder_on(device, large) for device in (cpu, cuda, mps)] == [
            follows,
            torch.bfloat16,
            torch.float32,
        ]
        assert {found.autoencoder_on(device, small) for device in (cpu, cuda, mps)} == {torch.float32}
    for text in ("float32", "float16", "int8,activations=float16", "bfloat16,autoencoder=float32"):
        assert parse_precision(text).autoencoder_on(cpu, large) == torch.float32
    assert parse_precision("float32,autoencoder=bfloat16").autoencoder_on(cpu, small) == torch.bfloat16


def test_the_faster_precision_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of its own: each call of a convolution takes as long as the script says, float32 first."""
    for float32, bfloat16, expected in ((1.0, 0.5, True), (1.0, 0.9, False), (1.0, 3.0, False)):
        ticks = iter([0.0, 0.0] + [0.0, float32, 0.0, bfloat16] * 3)  # the first calls are not counted
        monkeypatch.setattr(measuring.time, "perf_counter", ticks.__next__)
        assert vae_precision.faster_on_cpu.__wrapped__(64) is expected


@pytest.mark.parametrize(
    "text", ["", "int5", "int8,mlp=int8", "int8,head=bf16", "int8,decoder=int4", "float32,activations=float16", "int8,"]
)
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="precision is"):
        parse_precision(text)


def test_help_names_them_all() -> None:
    option = PrecisionOption.__metadata__[0]  # type: ignore[attr-defined]
    assert all(name in option.help for name in NAMES)
    assert ALL_TASKS == TASKS


def test_hardware_that_does_not_multiply_in_fp8_is_told_while_loading() -> None:
    with pytest.raises(DeviceError, match="fp8-dynamic.*compute capability 8.9.*cpu"):
        Bagel.from_pretrained("mini", precision="fp8-dynamic", device="cpu")
    check_hardware(parse_precision("fp8"), torch.device("cpu"))


def quantised(bagel: Bagel) -> dict[str, QuantisedLinear]:
    return {n: m for n, m in bagel.checkpoint.model.named_modules() if isinstance(m, QuantisedLinear)}


@pytest.mark.parametrize("precision", [name for name in QUANTISED if name != "fp8-dynamic"])
def test_the_big_matrices_of_the_decoder_and_no_others(plain: Bagel, precision: str) -> None:
    bagel = Bagel.from_pretrained("mini", precision=precision)
    layers = bagel.config.decoder.num_layers
    assert len(quantised(bagel)) == layers * 2 * 7
    assert all(name.startswith("decoder.layers") for name in quantised(bagel))
    assert bagel.dtype == torch.bfloat16
    ours, theirs = bagel.checkpoint.model.state_dict(), plain.checkpoint.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        wanted, found = tensor.float(), ours[name].float()
        if name.removesuffix(".weight") in quantised(bagel):
            assert 0 < ((found - wanted).norm() / wanted.norm()).item() < 0.15, name
        else:
            assert torch.equal(found, wanted), name


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.03), ("int8-dynamic", 0.06), ("fp8", 0.06), ("int4", 0.2)])
def test_the_first_logits_are_near(plain: Bagel, precision: str, error: float) -> None:
    from bagel_mot.inference.request import Recorder

    image = plain.generate("a red star", seed=0, num_timesteps=6)

    def first(bagel: Bagel) -> torch.Tensor:
        recorder = Recorder()
        bagel.submit([image, ASKED], output="text", max_new_tokens=1, recorder=recorder).result()
        logits = recorder.logits[0].double()
        return logits - logits.mean()  # what is added to all of them changes nothing

    wanted, found = first(plain), first(Bagel.from_pretrained("mini", precision=precision))
    assert 1e-4 < ((found - wanted).norm() / wanted.norm()).item() < error


def test_parts_by_name() -> None:
    bagel = Bagel.from_pretrained("mini", precision="bfloat16,head=int8,vit=int8,autoencoder=bfloat16")
    names = quantised(bagel)
    assert "decoder.lm_head" in names
    assert "connector.fc1" in names
    assert len(names) == 1 + 2 + 6 * bagel.config.vit.num_layers
    assert next(bagel.checkpoint.autoencoder.parameters()).dtype == torch.bfloat16
    assert bagel.ask(bagel.generate("a red star", seed=0, num_timesteps=4), ASKED)


@pytest.mark.parametrize("stored", ["int8", "fp8", "int4", "nf4"])
def test_in_float16_nothing_overflows(stored: str) -> None:
    bagel = Bagel.from_pretrained("mini", precision=f"{stored},activations=float16")
    outputs: list[torch.Tensor] = []
    for module in quantised(bagel).values():
        module.register_forward_hook(lambda module, given, made: outputs.append(made))
    bagel.generate("a red star", seed=0, num_timesteps=4)
    assert outputs
    assert all(made.dtype == torch.float16 and bool(made.isfinite().all()) for made in outputs)


@pytest.mark.parametrize(("stored", "error"), [("int8", 0.01), ("fp8", 0.04)])
def test_an_embedding_in_few_bits_if_asked(plain: Bagel, stored: str, error: float) -> None:
    bagel = Bagel.from_pretrained("mini", precision=f"bfloat16,embedding={stored}")
    embedding = bagel.checkpoint.model.decoder.embed_tokens
    assert isinstance(embedding, QuantisedEmbedding)
    assert not quantised(bagel)
    wanted = plain.checkpoint.model.decoder.embed_tokens.weight
    ids = torch.tensor([[0, 5], [1000, 5]])
    found = embedding(ids)
    assert (found.shape, found.dtype) == ((2, 2, wanted.shape[1]), torch.bfloat16)
    assert torch.equal(found[0, 1], found[1, 1])
    assert 1e-4 < ((found - wanted[ids]).norm() / wanted[ids].norm()).item() < error
    assert torch.equal(bagel.checkpoint.model.state_dict()["decoder.embed_tokens.weight"][1000], found[1, 0])
    predicted = weight_bytes(bagel.config, parse_precision(f"bfloat16,embedding={stored}"), TASKS).embedding
    assert predicted == embedding.matrix.stored_bytes(embedding.shape) < wanted.nbytes
    assert bagel.ask(bagel.generate("a red star", seed=0, num_timesteps=4), ASKED)


@pytest.mark.parametrize("stored", ["int4", "nf4", "int8-dynamic"])
def test_an_embedding_is_stored_by_rows(stored: str) -> None:
    with pytest.raises(DeviceError, match=f"'embedding={stored}' is not known.*embedding= with fp8 or int8"):
        parse_precision(f"int8,embedding={stored}")


@pytest.fixture(scope="module")
def understanding() -> Bagel:
    return Bagel.from_pretrained("mini", precision="int8", tasks=("understand",))


def stored(bagel: Bagel) -> int:
    model, images = bagel.checkpoint.model, bagel.checkpoint.autoencoder
    return sum(t.nbytes for m in (model, images) for t in (*m.parameters(), *m.buffers()) if t.device.type != "meta")


def test_understanding_alone_answers_as_all_of_it(understanding: Bagel) -> None:
    whole = Bagel.from_pretrained("mini", precision="int8")
    image = whole.generate("a red star", seed=0, num_timesteps=4)
    assert understanding.ask(image, ASKED) == whole.ask(image, ASKED)
    assert not any(".gen." in name for name in understanding.checkpoint.model.state_dict())
    assert stored(understanding) < 0.6 * stored(whole)
    session = understanding.session(understanding=True)
    session.add(image)
    session.add(ASKED)
    assert session.generate_text() == understanding.ask(image, ASKED)


def test_generating_alone_draws_as_all_of_it() -> None:
    alone, whole = (Bagel.from_pretrained("mini", tasks=tasks) for tasks in (("generate",), TASKS))
    assert not any(name.startswith(("vit", "connector")) for name in alone.checkpoint.model.state_dict())
    asked: dict[str, Any] = {"seed": 3, "num_timesteps": 5, "think": True, "max_think_tokens": 8}
    assert alone.generate("a blue car", **asked).tobytes() == whole.generate("a blue car", **asked).tobytes()
    image = whole.generate("a blue car", seed=3, num_timesteps=5)
    with pytest.raises(SettingError, match=r"loaded with tasks=\('generate',\).*'understand'"):
        alone.ask(image, ASKED)
    with pytest.raises(SettingError, match="'edit'"):
        alone.edit(image, "make it red")
    with pytest.raises(SettingError, match="'edit'"):
        alone.session()
    assert isinstance(alone.ask(None, "hello"), str)


def test_what_draws_and_reads_images_edits_too() -> None:
    both = Bagel.from_pretrained("mini", tasks=("generate", "understand"))
    whole = Bagel.from_pretrained("mini")
    image = whole.generate("a blue car", seed=3, num_timesteps=5)
    edited = [bagel.edit(image, "make it red", seed=1, num_timesteps=3) for bagel in (both, whole)]
    assert edited[0].tobytes() == edited[1].tobytes()
    both.session()


def test_what_understanding_lacks_is_said_before_any_work(understanding: Bagel) -> None:
    before = understanding.engine.stats.forwards
    with pytest.raises(SettingError, match=r"loaded with tasks=\('understand',\).*'generate'"):
        understanding.generate("a blue car")
    with pytest.raises(SettingError, match="'edit'"):
        understanding.session()
    assert understanding.engine.stats.forwards == before


@pytest.mark.parametrize("tasks", [(), ("draw",), "understand"])
def test_unknown_tasks_are_refused(tasks: Any) -> None:
    with pytest.raises(SettingError, match="tasks is"):
        load_checkpoint(MINI_FOLDER, tasks=tasks)


def test_a_file_with_weights_is_a_checkpoint(golden: Any) -> None:
    folder = Bagel.from_pretrained(golden.checkpoint)
    single = Bagel.from_pretrained(golden.checkpoint / "ema.safetensors")
    a, b = folder.checkpoint.model.state_dict(), single.checkpoint.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        Bagel.from_pretrained(Path(__file__))


def test_precision_of_a_checkpoint_is_told() -> None:
    assert Precision().name == "bfloat16"
    assert Bagel.from_pretrained("mini", precision="int4").checkpoint.precision.name == "int4"
    with pytest.raises(DeviceError, match="precision is 'int7'"):
        Bagel.from_pretrained("mini", precision="int7")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_embedding_stays_in_its_file(monkeypatch: pytest.MonkeyPatch, plain: Bagel) -> None:
    monkeypatch.setattr("bagel_mot.checkpoint.opening.LARGE_EMBEDDING", 1000)
    bagel = Bagel.from_pretrained("mini", precision="bfloat16", device="cpu")
    weight = bagel.checkpoint.model.decoder.embed_tokens.weight
    assert torch.equal(weight, plain.checkpoint.model.decoder.embed_tokens.weight)
    at = f"{weight.data_ptr():x}"
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    names = [m[-1] for m in maps if int(m[0].split("-")[0], 16) <= int(at, 16) < int(m[0].split("-")[1], 16)]
    assert names[0].endswith("ema.safetensors")
    # Where it is to be cast it is no view.
    wide = Bagel.from_pretrained("mini", precision="float32", device="cpu")
    assert wide.checkpoint.model.decoder.embed_tokens.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_compiled_as_uncompiled(precision: str) -> None:
    plain, compiled = (Bagel.from_pretrained("mini", precision=precision, compile=c) for c in (False, True))
    images = [bagel.generate("a blue car", seed=3, num_timesteps=4) for bagel in (plain, compiled)]
    first, second = (torch.tensor(list(image.tobytes())).float() for image in images)
    assert (first - second).abs().mean() < 8  # of 255 grey levels: bfloat16 is rounded at other places
    assert compiled.ask(images[0], ASKED)


def test_a_checkpoint_in_few_bits_is_used_as_it_is_stored(tmp_path: Path) -> None:
    from bagel_mot.checkpoint.convert import convert

    convert(MINI_FOLDER, tmp_path / "nf4", "nf4")
    bagel = Bagel.from_pretrained(tmp_path / "nf4", device="cpu")
    assert bagel.checkpoint.precision.name == "nf4"
    assert len(quantised(bagel)) == bagel.config.decoder.num_layers * 14
    assert Bagel.from_pretrained(tmp_path / "nf4", device="cpu", precision="float32").dtype == torch.float32


def test_a_file_with_some_matrices_in_few_bits_stays_exact(tmp_path: Path) -> None:
    """Rounding the others alike, or the few again, would lose what is in the file."""
    from safetensors.torch import load_file, save_file

    from bagel_mot.checkpoint.convert import convert
    from bagel_mot.checkpoint.opening import open_source, stored_weights

    convert(MINI_FOLDER, tmp_path / "fp8", "fp8")
    path = tmp_path / "fp8" / "ema.safetensors"
    tensors, plain = load_file(path), load_file(MINI_FOLDER / "ema.safetensors")
    assert stored_weights(open_source(path)).format == "fp8"
    for name in [name for name in tensors if ".layers.0." in name]:
        del tensors[name]
    tensors |= {name: tensor for name, tensor in plain.items() if ".layers.0." in name}
    save_file(tensors, path)
    assert stored_weights(open_source(path)).format is None
    found = Bagel.from_pretrained(tmp_path / "fp8", device="cpu", precision="auto")
    state, exact = found.checkpoint.model.state_dict(), Bagel.from_pretrained("mini", precision="float32")
    wanted = exact.checkpoint.model.state_dict()
    rounded = Bagel.from_pretrained("mini", precision="fp8,activations=float32").checkpoint.model.state_dict()
    for name in state:
        if name.startswith("decoder.layers.0."):
            assert torch.equal(state[name].float(), wanted[name]), name
        elif name.startswith("decoder.layers.1."):
            assert torch.equal(state[name].float(), rounded[name]), name


def test_an_embedding_of_a_file_in_few_bits_stays_in_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bagel_mot.checkpoint.convert import convert
    from bagel_mot.checkpoint.opening import embedding_dtype, open_source

    convert(MINI_FOLDER, tmp_path / "int8", "int8")
    source = open_source(tmp_path / "int8" / "ema.safetensors")
    assert embedding_dtype(source) is None  # it is small
    monkeypatch.setattr("bagel_mot.checkpoint.opening.LARGE_EMBEDDING", 1000)
    assert embedding_dtype(source) == torch.bfloat16
    whole = Bagel.from_pretrained("mini", precision="int8")
    mapped = Bagel.from_pretrained(tmp_path / "int8", device="cpu")
    image = mapped.generate("a red star", seed=2, num_timesteps=4)
    assert image.tobytes() == whole.generate("a red star", seed=2, num_timesteps=4).tobytes()


def test_a_part_whose_matrices_do_not_fit_is_refused() -> None:
    """The vision transformer of the official size is 4304 wide, no multiple of 64."""
    from bagel_mot.checkpoint.load_weights import quantise
    from bagel_mot.config import BagelConfig, DecoderConfig, VaeConfig, VitConfig
    from bagel_mot.model.bagel import BagelModel

    config = BagelConfig(
        decoder=DecoderConfig(
            hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=64, vocab_size=64
        ),
        vit=VitConfig(hidden_size=64, num_layers=1, num_heads=2, intermediate_size=80, image_size=28),
        vae=VaeConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4),
        max_latent_size=4,
        vit_max_num_patch_per_side=2,
    )
    with pytest.raises(DeviceError, match=r"precision is 'int8,vit=int4', but vit.*fc1.weight of 80×64 cannot be"):
        quantise(BagelModel(config), parse_precision("int8,vit=int4"))
    quantise(BagelModel(config), parse_precision("int4,vit=int8"))


@pytest.mark.parametrize(
    "given",
    [
        {"precision": None},
        {"precision": 8},
        {"device": None},
        {"tasks": 5},
        {"tasks": None},
        {"memory": [1]},
        {"memory": True},
        {"offload": None},
    ],
    ids=str,
)
def test_arguments_of_other_types_are_refused(given: dict[str, Any]) -> None:
    [name] = given
    with pytest.raises(SettingError, match=f"^{name} is "):
        Bagel.from_pretrained("mini", **given)
