"""Pictures in and out: limits, metadata, and what is served to whom."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from bagel_mot.app.image_files import example_image, keep, open_uploads, read_metadata
from bagel_mot.app.page import INSTRUCTIONS, PROMPTS, mount
from bagel_mot.app.style import CSS, page_options
from bagel_mot.app.tabs.ask import QUESTIONS
from bagel_mot.app.tabs.chat import MESSAGES
from bagel_mot.errors import BagelError, ImageError, SettingError
from bagel_mot.inference.result import Result
from bagel_mot.serving.openai.app import create_app
from bagel_mot.serving.options import ServerOptions
from bagel_mot.serving.service import LimitError, Limits, Service
from tests.app.conftest import free_port

PIXELS = 1_000_000


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uploads lie."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def test_an_image_says_how_it_was_made(service: Service) -> None:
    def drawn(prompt: str, **settings: Any) -> Result:
        return service.start([prompt], **settings).tickets[0].result(30)

    result = drawn("a yellow sun 太阳", seed=5, num_timesteps=3, size=(64, 48), cfg_text_scale=2.0)
    path = keep(result.image, "bagel-5")
    prompt, settings = read_metadata(path, "generate", PIXELS)
    assert prompt == "a yellow sun 太阳"
    assert {"seed": 5, "num_timesteps": 3, "size": (64, 48), "cfg_text_scale": 2.0}.items() <= settings.items()
    again = drawn(prompt, **settings)
    assert again.image.tobytes() == result.image.tobytes()
    assert Path(path).name == "bagel-5.png"


@pytest.mark.parametrize(
    ("notes", "sentence"),
    [
        ({}, "does not say how it was made"),
        ({"prompt": "a cup"}, "does not say how it was made"),
        ({"prompt": "a cup", "settings": "{"}, "damaged"),
        ({"prompt": "a cup", "settings": "[]"}, "damaged"),
        ({"prompt": "a cup", "settings": "{}", "seed": "x"}, "damaged"),
        ({"prompt": "a cup", "settings": '{"num_timesteps": 1}'}, "num_timesteps is 1"),
    ],
)
def test_an_image_that_says_nothing_of_use(uploads: Path, notes: dict[str, str], sentence: str) -> None:
    info = PngImagePlugin.PngInfo()
    for name, text in notes.items():
        info.add_itxt(name, text)
    Image.new("RGB", (8, 8)).save(uploads / "a.png", pnginfo=info)
    with pytest.raises((ImageError, SettingError), match=sentence):
        read_metadata(str(uploads / "a.png"), "generate", PIXELS)


def test_an_image_whose_texts_are_too_long_says_nothing(uploads: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * (1 << 21), zip=True)
    Image.new("RGB", (8, 8)).save(uploads / "a.png", pnginfo=info)
    with pytest.raises(ImageError, match="does not say how it was made"):
        read_metadata(str(uploads / "a.png"), "generate", PIXELS)


def test_settings_of_other_versions_are_left_out(uploads: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("prompt", "a cup")
    info.add_itxt("settings", '{"num_timesteps": 9, "unheard_of": 1, "max_new_tokens": 7}')
    Image.new("RGB", (8, 8)).save(uploads / "a.png", pnginfo=info)
    _, settings = read_metadata(str(uploads / "a.png"), "generate", PIXELS)
    assert settings == {"num_timesteps": 9, "seed": None}


def test_uploads_are_opened_with_limits_and_without_a_path_in_the_message(
    service: Service, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "limits", Limits(images=2, image_pixels=PIXELS))
    good, broken, large, gone = (str(uploads / name) for name in ("good.png", "broken.png", "large.png", "gone.png"))
    Image.new("RGBA", (8, 8)).save(good)
    Path(broken).write_bytes(b"no picture")
    Image.new("RGB", (1001, 1000)).save(large)
    assert [image.mode for image in open_uploads([good], service)] == ["RGB"]
    for wrong, sentence in (
        (broken, "not in a known picture format"),
        (large, "too large"),
        (gone, "upload it anew"),
        (__file__, "was not uploaded to this page"),
        (str(uploads / ".." / "secret.png"), "was not uploaded to this page"),
    ):
        with pytest.raises(ImageError, match=sentence) as raised:
            open_uploads([good, wrong], service)
        assert str(uploads) not in str(raised.value)
        assert str(raised.value).startswith(Path(wrong).name), "it names the file"
    with pytest.raises(LimitError, match="3 pictures"):
        open_uploads([broken] * 3, service)  # counted before any is opened


def test_examples_can_be_used_with_the_embedded_model(service: Service) -> None:
    path = example_image(64)
    assert open_uploads([path], service)[0].size == (64, 64)
    for text in (*PROMPTS, *INSTRUCTIONS, *QUESTIONS, *MESSAGES):
        assert text.isascii(), "its words are English"
        assert len(service.bagel.tokenizer.encode(text)) < 24, "and as short as those that it was trained on"


def test_nothing_is_fetched_or_told_elsewhere() -> None:
    options = page_options()
    assert options["allowed_paths"] == []
    assert options["run_history"] is False
    assert "http" not in CSS
    assert all("http" not in str(sheet) for sheet in options["theme"]._stylesheets)


@pytest.fixture(scope="module")
def client(service: Service) -> Any:
    app = create_app(service, ServerOptions(model_name="mini"))
    mount(app, service, path="/app", name="mini <b>", auth=[("me", "secret")])
    with TestClient(app) as client:
        yield client


def test_the_page_can_be_mounted_behind_a_password(client: Any) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/app/config").status_code == 401
    assert client.post("/app/login", data={"username": "me", "password": "wrong"}).status_code == 400
    assert client.post("/app/login", data={"username": "me", "password": "secret"}).status_code == 200
    assert client.get("/app/").status_code == 200
    config = client.get("/app/config").json()
    labels = {component["props"].get("label") for component in config["components"]}
    assert {"Create", "Edit", "Ask", "Chat"} <= labels
    assert "mini &lt;b&gt;" in str(config)


def test_files_of_the_server_are_not_served(client: Any) -> None:
    client.post("/app/login", data={"username": "me", "password": "secret"})
    for path in ("/etc/passwd", __file__, str(Path(__file__).parents[2] / "pyproject.toml")):
        assert client.get(f"/app/gradio_api/file={path}").status_code == 403


@pytest.fixture(scope="module")
def mounted(service: Service) -> Iterator[str]:
    """The address of a page that was mounted, not launched."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(mount(FastAPI(), service), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/app"
    server.should_exit = True
    thread.join(30)


def event(mounted: str, target: str, file: dict[str, Any], tab: str) -> str:
    """What the page answers to an event of a button, with this file in all places for files."""
    config = httpx2.get(f"{mounted}/config").json()
    by_id = {component["id"]: component for component in config["components"]}
    (button,) = (id for id, one in by_id.items() if one["props"].get("elem_id") == target)
    (event,) = (one for one in config["dependencies"] if button in (to[0] for to in one["targets"]) and one["inputs"])
    values = {
        "gallery": [{"image": file, "caption": None}],
        "multimodaltextbox": {"text": "hi", "files": [file]},
        "textbox": "hi",
        "state": 0,
    }
    data = []
    for id in event["inputs"]:
        kind, own = by_id[id]["type"], by_id[id]["props"]
        changed = kind in values and own.get("elem_id", "").rpartition("-")[2] not in ("stop", "seed")
        data.append(values[kind] if changed else own.get("value"))
    body = {"data": data, "fn_index": event["id"], "session_hash": tab}
    assert httpx2.post(f"{mounted}/gradio_api/queue/join", json=body).status_code == 200
    said = ""
    with httpx2.stream("GET", f"{mounted}/gradio_api/queue/data", params={"session_hash": tab}) as answer:
        for line in answer.iter_lines():
            said += line
            if "process_completed" in line:
                break
    return said


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("target", ["edit-run", "ask-run", "chat-run"])
def test_a_path_that_was_not_uploaded_is_neither_read_nor_served(
    mounted: str, tmp_path: Path, target: str, marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may write any path into an event, as if it were that of an upload. One that is marked as a file is
    refused by gradio, any other by the page.
    """
    told: list[str] = []
    monkeypatch.setattr("gradio.Warning", lambda sentence, **_: told.append(sentence))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "secret.png")
    file: dict[str, Any] = {"path": str(tmp_path / "secret.png"), "orig_name": "secret.png"}
    if marked:
        file["meta"] = {"_type": "gradio.FileData"}
    said = event(mounted, target, file, f"{target}-{marked}")
    assert "secret.png" not in said
    if '"success":true' in said:
        assert len(told) == 1
        assert "was not uploaded to this page" in told[0]
    else:
        assert marked or target == "chat-run"


@pytest.mark.parametrize("target", ["edit-run", "ask-run", "chat-run"])
def test_no_address_is_fetched_for_a_client(mounted: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file is expected a client may write an address, which Gradio would download."""
    fetched: list[str] = []

    async def download(url: str, cache_dir: str) -> str:
        fetched.append(url)
        raise RuntimeError("it was to be downloaded")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", download)
    file = {"path": "http://example.org/a.png", "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    assert '"success":false' in event(mounted, target, file, f"address-{target}")
    assert not fetched


def test_an_upload_that_is_too_large_is_refused(client: Any) -> None:
    client.post("/app/login", data={"username": "me", "password": "secret"})
    large = io.BytesIO(b"0" * (33 << 20))
    assert client.post("/app/gradio_api/upload", files={"files": ("a.png", large)}).status_code == 413


def test_auth_on_the_command_line() -> None:
    from bagel_mot.cli.page import user_of

    assert user_of("me:a:b") == ("me", "a:b")
    for wrong in ("me", "me:", ":secret", ""):
        with pytest.raises(SettingError, match="USER:PASSWORD"):
            user_of(wrong)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens the page with what was asked for, tells where, and ends with Ctrl-C."""
    import gradio as gr
    from typer.testing import CliRunner

    from bagel_mot.cli import app

    launched: dict[str, Any] = {}

    def launch(page: gr.Blocks, **options: Any) -> tuple[None, str, None]:
        launched.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    arguments = ["app", "--port", "0", "--auth", "me:secret", "--lang", "zh", "--precision", "float32", "--open"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    assert launched["auth"] == [("me", "secret")]
    assert launched["server_name"] == "127.0.0.1"
    assert launched["server_port"] > 0
    assert launched["share"] is False
    assert launched["inbrowser"] is True
    assert Path(launched["favicon_path"]).read_text(encoding="utf-8").startswith("<svg")
    result = CliRunner().invoke(app, ["app", "--auth", "me"])
    assert result.exit_code == 2


def test_a_missing_package_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    import bagel_mot.app as package

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(BagelError, match=r"run pip install .*\[app\]\"\.$"):
        importlib.reload(package)
