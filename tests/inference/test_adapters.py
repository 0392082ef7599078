"""Adapters beside a loaded model: they do what merged weights do, are switched and mixed, and leave no cache behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint.adapters import write_adapter
from bagel_mot.checkpoint.official import Checkpoint, load_checkpoint
from bagel_mot.checkpoint.precision import parse_precision
from bagel_mot.errors import BagelError, CheckpointError, SettingError
from bagel_mot.inference.adapters import named, with_strength
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.loading import find_adapter
from bagel_mot.inference.request import Recorder
from bagel_mot.model.adapters import Adapter, merge
from bagel_mot.model.lora import adapted_layers
from bagel_mot.model.quant.linear import QuantisedLinear
from tests.adapters import random_adapter
from tests.checkpoint.fake_hub import be_the_hub, running

Outcome = tuple[Tensor, Tensor, list[int]]


@pytest.fixture
def adapters(checkpoint: Checkpoint, tmp_path: Path) -> dict[str, Adapter]:
    """Three adapters, written into folders of their names."""
    made = {
        "dogs": random_adapter(checkpoint.config, seed=1, deviation=0.3),
        "cats": random_adapter(checkpoint.config, seed=2, rank=2, rslora=True, deviation=0.3),
        "birds": random_adapter(checkpoint.config, seed=3, dora=True, deviation=0.3),
    }
    for name, adapter in made.items():
        write_adapter(tmp_path / name, adapter, "mini", dtype=torch.float32)
    return made


@pytest.fixture
def fresh(golden: Any, defaults: Defaults, adapters: dict[str, Adapter], tmp_path: Path) -> Callable[..., Bagel]:
    """The recorded model, with weights of its own, in a precision and with some of the adapters."""

    def load(*names: str, precision: str = "float32") -> Bagel:
        bagel = Bagel(load_checkpoint(golden.checkpoint, precision=parse_precision(precision)), defaults=defaults)
        for name in names:
            assert bagel.load_adapter(tmp_path / name) == name
        return bagel

    return load


def merged(bagel: Bagel, mixed: list[tuple[Adapter, float]]) -> Bagel:
    """A model without adapters, with these merged into its weights in float32."""
    for name, parameter in bagel.engine.model.named_parameters():
        parameter.data.copy_(merge(parameter.data, name.removesuffix(".weight"), mixed))
    return bagel


def outcome(bagel: Bagel, golden: Any) -> Outcome:
    """The latent of an edit, the first logits of an answer, and the answer's tokens."""
    drawn, said = Recorder(), Recorder()
    image = golden.image("wide")
    bagel.interleave([image, "make it red"], recorder=drawn, seed=3, num_timesteps=3, size=(32, 32))
    bagel.interleave([image, "What is this?"], output="text", recorder=said, max_new_tokens=3)
    assert drawn.latent is not None
    return drawn.latent, said.logits[0], said.tokens


def assert_same(got: Outcome, expected: Outcome) -> None:
    for a, b in zip(got[:2], expected[:2], strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    assert got[2] == expected[2]


def differs(got: Outcome, expected: Outcome) -> bool:
    return all(bool((a - b).norm() > 0.01 * b.norm()) for a, b in zip(got[:2], expected[:2], strict=True))


def test_adapters_do_what_merged_weights_do(
    fresh: Callable[..., Bagel], golden: Any, adapters: dict[str, Adapter]
) -> None:
    plain = outcome(fresh(), golden)
    bagel = fresh(*adapters)
    assert bagel.adapters == {"dogs": 1.0, "cats": 1.0, "birds": 1.0}
    for strengths in (None, {"dogs": 1.0}, {"cats": 0.5, "dogs": -1.0}, {"birds": 0.3}):
        if strengths is not None:
            bagel.set_adapters(strengths)
        mixed = [(adapter, bagel.adapters[name]) for name, adapter in adapters.items()]
        got = outcome(bagel, golden)
        assert_same(got, outcome(merged(fresh(), mixed), golden))
        assert differs(got, plain)


def test_adapters_that_are_off_change_nothing(
    fresh: Callable[..., Bagel], golden: Any, adapters: dict[str, Adapter]
) -> None:
    plain, bagel = outcome(fresh(), golden), fresh(*adapters)
    bagel.set_adapters({"dogs": 0})
    assert bagel.adapters == {"dogs": 0.0, "cats": 0.0, "birds": 0.0}
    off = outcome(bagel, golden)
    assert torch.equal(off[0], plain[0])
    assert torch.equal(off[1], plain[1])
    for name in adapters:
        bagel.unload_adapter(name)
    assert not list(adapted_layers(bagel.engine.model))
    assert bagel.adapters == {}


@pytest.mark.parametrize("precision", ["int8", "nf4", "int4"])
def test_adapters_beside_quantised_matrices(
    fresh: Callable[..., Bagel], golden: Any, adapters: dict[str, Adapter], tmp_path: Path, precision: str
) -> None:
    """What they change is what they change on a plain model with the same values."""
    plain = fresh(precision="float32")
    bagel = fresh(precision=f"{precision},activations=float32")
    for name, parameter in plain.engine.model.named_parameters():
        found = bagel.engine.model.get_submodule(name.rpartition(".")[0])
        if isinstance(found, QuantisedLinear) and name.endswith(".weight"):
            parameter.data.copy_(found.matrix.dequantise(torch.float32))
    expected = outcome(merged(plain, [(adapters["birds"], 1.0), (adapters["cats"], 0.5)]), golden)
    for name in ("birds", "cats"):
        bagel.load_adapter(tmp_path / name)
    bagel.set_adapters({"birds": 1.0, "cats": 0.5})
    got = outcome(bagel, golden)
    for a, b in zip(got[:2], expected[:2], strict=True):
        # INT4's kernel for few rows rounds its activations to bfloat16.
        assert (a - b).norm() <= (0.1 if precision == "int4" else 2e-3) * b.norm()


def test_a_batch_is_as_each_alone(fresh: Callable[..., Bagel], golden: Any) -> None:
    bagel = fresh("dogs", "birds")
    questions = ["What is this?", "Which colour?", "How many?"]
    alone = [bagel.ask(golden.image("wide"), question) for question in questions]
    assert bagel.ask(golden.image("wide"), questions) == alone


def test_kept_beginnings_are_forgotten(fresh: Callable[..., Bagel], golden: Any) -> None:
    bagel = fresh("dogs")
    bagel.share_prefixes(4096)
    with_dogs = outcome(bagel, golden)
    assert bagel.runtime.prefixes.tokens > 0
    bagel.set_adapters({})
    assert bagel.runtime.prefixes.tokens == 0
    assert_same(outcome(bagel, golden), outcome(fresh(), golden))
    bagel.set_adapters({"dogs": 1.0})
    assert_same(outcome(bagel, golden), with_dogs)


def test_a_session_goes_on_with_the_new_ones(fresh: Callable[..., Bagel], golden: Any) -> None:
    bagel = fresh("dogs")
    chat = bagel.session()
    chat.add(golden.image("wide"))
    chat.add("What is this?")
    fork = chat.fork()
    bagel.set_adapters({})
    other = fresh().session()
    other.add(golden.image("wide"))
    other.add("What is this?")
    expected = other.generate_image(seed=1, num_timesteps=3, size=(32, 32), return_result=True)
    for session in (chat, fork):
        before = len(session.history)
        got = session.generate_image(seed=1, num_timesteps=3, size=(32, 32), return_result=True)
        assert got.image.tobytes() == expected.image.tobytes()
        assert len(session.history) == before + 1
        assert session.tokens == other.tokens
        session.undo()
    assert chat.generate_text(max_new_tokens=3) == fresh_answer(fresh, golden)


def fresh_answer(fresh: Callable[..., Bagel], golden: Any) -> str:
    session = fresh().session()
    session.add(golden.image("wide"))
    session.add("What is this?")
    return session.generate_text(max_new_tokens=3)


def test_they_cannot_be_changed_while_requests_are_at_work(fresh: Callable[..., Bagel]) -> None:
    bagel = fresh("dogs")
    ticket = bagel.submit(["a dog"], num_timesteps=3, size=(32, 32))
    for change in (lambda: bagel.set_adapters({}), lambda: bagel.unload_adapter("dogs")):
        with pytest.raises(BagelError, match=r"^adapters cannot be changed while requests are at work \(1 now\)"):
            change()
    assert bagel.adapters == {"dogs": 1.0}
    ticket.result()
    bagel.set_adapters({})


def test_from_pretrained_takes_them_and_leaves_layers_on_the_disk(
    golden: Any, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    """Their numbers are in no file that is mapped: they stay in memory while layers come and go."""
    places: Any = [tmp_path / "dogs", tmp_path / "birds"]
    given = {"device": "cpu", "precision": "float32", "tasks": ("understand",)}
    answers, logits = [], []
    for options in ({}, {"offload": "disk"}):
        with Bagel.from_pretrained(golden.checkpoint, adapters=places, **given, **options) as bagel:
            assert bagel.adapters == {"dogs": 1.0, "birds": 1.0}
            for _ in range(2):
                said = Recorder()
                answers.append(bagel.interleave(["who?"], output="text", recorder=said, max_new_tokens=4))
                logits.append(said.logits[0])
    assert len(set(answers)) == 1
    assert all((one - logits[0]).norm() <= 1e-4 * logits[0].norm() for one in logits)


def test_adapters_count_in_what_is_needed(golden: Any, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    peaks = []
    for chosen in ({}, {"dogs": tmp_path / "dogs"}):
        bagel = Bagel.from_pretrained(
            golden.checkpoint, device="cpu", precision="float32", memory="4GB", adapters=chosen
        )
        assert bagel.plan is not None
        peaks.append(bagel.plan.peak_host)
    assert peaks[1] - peaks[0] == 4 * adapters["dogs"].parameters


def test_words_that_a_checkpoint_does_not_know_may_be_an_adapters(tmp_path: Path) -> None:
    bagel = Bagel.from_pretrained("mini")
    assert bagel.hint("a zeppelin") is not None
    write_adapter(tmp_path / "zeppelins", random_adapter(bagel.config, rank=1))
    bagel.load_adapter(tmp_path / "zeppelins")
    assert bagel.hint("a zeppelin") is None
    bagel.set_adapters({})
    assert bagel.hint("a zeppelin") is not None


# ------------------------------------------------------------------------------------------------- names and places


def test_names() -> None:
    assert named(["runs/dogs", "owner/cats-v1.5", Path("runs/birds/step-00000500")]) == {
        "dogs": "runs/dogs",
        "cats-v1-5": "owner/cats-v1.5",
        "birds": Path("runs/birds/step-00000500"),
    }
    assert with_strength("runs/dogs") == ("runs/dogs", 1.0)
    assert with_strength("runs/dogs:0.5") == ("runs/dogs", 0.5)
    assert with_strength("C:\\dogs") == ("C:\\dogs", 1.0)


def test_wrong_names_and_strengths_are_refused(fresh: Callable[..., Bagel], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^adapters is 'runs/dogs': it must be a list"):
        named("runs/dogs")
    with pytest.raises(SettingError, match=r"^a/dogs and b/dogs would both be called 'dogs': give them names"):
        named(["a/dogs", "b/dogs"])
    with pytest.raises(SettingError, match=r"^'a\.b' cannot be the name of an adapter"):
        named({"a.b": "runs/dogs"})
    with pytest.raises(SettingError, match=r"^the strength of adapter 'runs/dogs' is 'nan'"):
        with_strength("runs/dogs:nan")
    bagel = fresh("dogs")
    with pytest.raises(SettingError, match=r"^there is no adapter 'dog': did you mean dogs\?"):
        bagel.set_adapters({"dog": 1})
    with pytest.raises(SettingError, match=r"^the strength of adapter 'dogs' is '1': it must be a number"):
        bagel.set_adapters({"dogs": "1"})  # type: ignore[dict-item]
    with pytest.raises(SettingError, match=r"^there is an adapter called 'dogs' already"):
        bagel.load_adapter(tmp_path / "dogs")
    with pytest.raises(SettingError, match=r"^there is no adapter 'x': none is loaded"):
        fresh().set_adapters({"x": 1.0})
    assert bagel.load_adapter(tmp_path / "dogs", name="more") == "more"


def test_the_newest_of_a_run_is_found(adapters: dict[str, Adapter], tmp_path: Path) -> None:
    for step in ("step-00000002", "step-00000010"):
        shutil.copytree(tmp_path / "dogs", tmp_path / "run" / step)
    assert find_adapter(tmp_path / "run") == tmp_path / "run" / "step-00000010"
    with pytest.raises(CheckpointError, match=r"is not an adapter: it has no adapter_config.json; give the folder"):
        find_adapter(tmp_path)


def test_an_adapter_comes_from_the_hub(
    adapters: dict[str, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in (tmp_path / "dogs").iterdir()}
    with running({**files, "README.md": b"dogs", "optimizer.pt": b"x"}) as hub:
        be_the_hub(hub, tmp_path / "cache", monkeypatch)
        folder = find_adapter("owner/name")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        hub.requests.clear()
        assert find_adapter("owner/name") == folder
        assert not hub.received("adapter_model.safetensors")
    assert find_adapter("owner/name") == folder  # the hub cannot be reached
    with running({"config.json": b"{}"}) as hub:
        be_the_hub(hub, tmp_path / "other", monkeypatch)
        with pytest.raises(CheckpointError, match=r"^owner/name has no adapter_config.json: it is not an adapter"):
            find_adapter("owner/name")
