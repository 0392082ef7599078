"""The adapters of evaluation kits ask a served mini, as the kits would have them ask."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from bagel_mot import Bagel
from bagel_mot.serving.options import ServerOptions
from tests.evaluation.judges.scripted import error, reply, serving
from tests.serving.conftest import Live, running

FOLDER = Path(__file__).parents[2] / "integrations" / "eval_kits"


class FakeBase:
    """The parts of VLMEvalKit's class of servers on which an adapter relies."""

    def __init__(
        self, retry: int = 10, wait: float = 1, system_prompt: str | None = None, verbose: bool = True, **kwargs: Any
    ) -> None:
        self.retry, self.system_prompt, self.fail_msg = retry, system_prompt, "Failed to obtain answer via API."
        self.default_kwargs = kwargs

    def generate(self, message: list[dict[str, Any]], **kwargs: Any) -> str:
        answer = ""
        for _ in range(self.retry):
            code, answer, _ = self.generate_inner(message, **self.default_kwargs, **kwargs)  # type: ignore[attr-defined]
            if code == 0 and self.fail_msg not in answer and answer != "":
                return str(answer)
        return self.fail_msg if not answer else str(answer)


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The adapter of VLMEvalKit, in which a fake of the kit stands."""
    names = ("vlmeval", "vlmeval.api", "vlmeval.api.base", "vlmeval.config", "vlmeval.smp", "vlmeval.run", "run")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules["vlmeval.api.base"].BaseAPI = FakeBase
    modules["vlmeval.config"].supported_VLM = {"another": None}
    modules["vlmeval"].started = []
    modules["vlmeval.smp"].load_env = lambda: modules["vlmeval"].started.append("load_env")
    for name in ("vlmeval.run", "run"):
        modules[name].main = functools.partial(modules["vlmeval"].started.append, name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("bagel_vlmevalkit")
    for name in ("bagel_vlmevalkit", "bagel_client"):
        sys.modules.pop(name, None)


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("bagel_geneditevalkit")
    for name in ("bagel_geneditevalkit", "bagel_client"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def mini() -> Iterator[Bagel]:
    with Bagel.from_pretrained("mini", threads=1) as bagel:
        yield bagel


@pytest.fixture(scope="module")
def live(mini: Bagel) -> Iterator[Live]:
    served = Bagel(mini.checkpoint, defaults=mini.defaults)
    with running(served, ServerOptions(model_name="mini", api_keys=("secret",))) as server:
        yield server


@pytest.fixture
def square(tmp_path: Path) -> Path:
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    image.paste((200, 30, 30), (16, 16, 48, 48))
    image.save(tmp_path / "square.png")
    return tmp_path / "square.png"


def test_vlmevalkit_gets_the_answers_of_the_model(
    kit: Any, live: Live, mini: Bagel, square: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAGEL_SERVER_URL", f"{live.url}/v1")
    monkeypatch.setenv("BAGEL_SERVER_KEY", "secret")
    model = kit.MODELS["bagel"](settings={"max_tokens": 8})
    question = "What color is the square?"
    message = [{"type": "image", "value": str(square)}, {"type": "text", "value": question}]
    expected = mini.ask(Image.open(square), question, max_new_tokens=8)
    assert model.generate(message, dataset="MME") == expected
    talk = [{"role": "user", "content": message}]
    assert model.generate_inner(talk, dataset="MME") == (0, expected, "answered")


def test_vlmevalkit_is_started_with_the_models(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.main()
    models = sys.modules["vlmeval.config"].supported_VLM  # type: ignore[attr-defined]
    assert set(models) == {"another", "bagel", "bagel-think"}
    # It sets the options of its command line in the keywords that a model has.
    assert {"retry", "verbose"} <= models["bagel"].keywords.keys() & models["bagel-think"].keywords.keys()
    assert models["bagel-think"]().settings == {"think": True}
    monkeypatch.delitem(sys.modules, "vlmeval.run")  # a checkout has run.py beside its package
    kit.main()
    assert sys.modules["vlmeval"].started == ["load_env", "vlmeval.run", "load_env", "run"]  # type: ignore[attr-defined]


def test_order_settings_and_failures_of_vlmevalkit(kit: Any, square: Path) -> None:
    with serving(reply("two"), reply(""), error(400, "too many images")) as script:
        url = f"{script.url}/v1"
        model = kit.BagelServe(url, "bagel", settings={"think": True}, retry=1, temperature=0.5)
        parts = [
            {"type": "text", "value": "First"}, {"type": "image", "value": str(square)},
            {"type": "text", "value": "how many?"},
        ]  # fmt: skip
        assert model.generate(parts, dataset="X") == "two"
        assert model.generate(parts) == " "  # an empty answer is one, too
        with pytest.warns(UserWarning, match="answers with status 400: too many images"):  # said without --verbose, too
            code, answer, log = model.generate_inner(parts)
        assert (code, answer) == (400, model.fail_msg)
        assert log == f"{url} answers with status 400: too many images"
        model.system_prompt = "Be brief."
        with pytest.warns(UserWarning, match="status"):
            model.generate_inner(parts)
    path, _, body = script.asked[0]
    assert path == "/v1/chat/completions"
    [message] = body.pop("messages")
    assert body == {"model": "bagel", "think": True, "temperature": 0.5}
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "text"]
    assert script.asked[-1][2]["messages"][0] == {
        "role": "system", "content": [{"type": "text", "text": "Be brief."}],
    }  # fmt: skip
    with pytest.warns(UserWarning, match="is `bagel serve` there"):
        code, _, log = kit.BagelServe("http://127.0.0.1:9/v1", retry=1).generate_inner(parts)
    assert code == -1
    assert "is `bagel serve` there?" in log


def test_the_client_waits_for_a_busy_server(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, slept = sys.modules["bagel_client"], list[float]()
    monkeypatch.setattr("time.sleep", slept.append)
    with serving(error(429, headers={"Retry-After": "7"}), error(503), (200, {}, b"{}")) as script:
        with pytest.raises(client.ServerError, match=r"no choices\[0\].message.content"):  # type: ignore[attr-defined]
            client.BagelClient(f"{script.url}/v1").answer([("user", ["?"])])  # type: ignore[attr-defined]
        assert len(script.asked) == 3
    assert [seconds for seconds in slept if seconds >= 1] == [7.0, 2.0]


def test_geneditevalkit_has_images_drawn_and_edited(
    images: Any, live: Live, mini: Bagel, square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAGEL_SERVER_URL", f"{live.url}/v1")
    monkeypatch.setenv("BAGEL_SERVER_KEY", "secret")
    model = images.BagelImages(num_timesteps=4)
    assert model.generate("a red car", seed=3).size == (64, 64)
    assert model.edit([square], "make it blue").size == (64, 64)
    assert model.edit([Image.open(square)], "make it blue", num_timesteps=3).size == (64, 64)
    rows = [
        {"prompt": "a red car", "out": "t2i/1.png", "seed": 3, "num_timesteps": 4},
        {"prompt": "make it blue", "out": "edit/1.png", "images": [str(square)], "num_timesteps": 4},
    ]
    source = tmp_path / "requests.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert images.main([str(source), str(tmp_path / "out")]) == 0
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert made == {"t2i/1.png", "edit/1.png"}
    Image.new("RGB", (2, 2)).save(tmp_path / "out" / "t2i" / "1.png")
    assert not model.make(rows[0], tmp_path / "out")  # it is there already
    expected = mini.generate("a red car", seed=3, num_timesteps=4)
    file = BytesIO()
    expected.save(file, "PNG")
    assert Image.open(BytesIO(file.getvalue())).size == model.generate("a red car", seed=3).size


def test_geneditevalkit_has_two_kinds_of_models(
    images: Any, live: Live, square: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAGEL_SERVER_URL", f"{live.url}/v1")
    monkeypatch.setenv("BAGEL_SERVER_KEY", "secret")
    loaded = {}
    for task, models in images.MODELS.items():  # as the kit loads a model, with settings of its command line
        for name, told in models.items():
            kind = getattr(importlib.import_module(told["module"], package="custom_models"), told["class"])
            given = {**told["model_kwargs"], "num_timesteps": 4, "max_think_tokens": 4}
            loaded[task, name] = kind(model_path=told["model_path"], **given)
    assert set(loaded) == {(task, name) for task in ("t2i", "edit") for name in ("bagel-serve", "bagel-serve-think")}
    draws, edits = loaded["t2i", "bagel-serve"], loaded["edit", "bagel-serve"]
    first, again, other = (draws.generate("a red car", seed=seed) for seed in (45, 45, 46))
    assert (first.mode, first.size) == ("RGB", (64, 64))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert (draws.width, draws.height) == (1024, 1024)
    assert loaded["t2i", "bagel-serve-think"].generate("a red car").size == (64, 64)
    parts = [Image.open(square), "make it", "blue"]
    whole = edits.generate([Image.open(square), "make it blue"], seed=42)
    assert edits.generate(parts).tobytes() == whole.tobytes()


def test_what_cannot_be_made_is_named(
    images: Any, live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "requests.jsonl"
    source.write_text('{"out": "1.png"}\n{"prompt": "a car", "out": "2.png", "images": ["none.png"]}\n')
    assert images.main([str(source), str(tmp_path / "out"), "--url", f"{live.url}/v1"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("1.png: a request lacks 'prompt'")
    assert told[1].startswith("2.png: ")
    source.write_text('{"prompt": "a car", "out": "3.png"}\n')
    assert images.main([str(source), str(tmp_path / "out"), "--url", f"{live.url}/v1"]) == 1  # without the key
    assert "answers with status 401" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))
    source.write_text("[")
    with pytest.raises(SystemExit):
        images.main([str(source), str(tmp_path / "out")])
