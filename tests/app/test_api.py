"""The page's endpoints, called as programs call them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.app.page import create_page
from bagel_mot.app.style import page_options
from bagel_mot.serving.service import Service
from tests.app.conftest import free_port

FEW = {"num_timesteps": 4, "seed": 7}


@pytest.fixture(scope="module")
def client(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from gradio_client import Client

    page = create_page(service, name="mini")
    _, url, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **page_options())
    yield Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
    page.close(verbose=False)


def test_its_own_endpoints_are_told_and_no_others(client: Any) -> None:
    told = client.view_api(return_format="dict")
    assert set(told["named_endpoints"]) == {"/generate", "/edit", "/ask", "/chat"}
    assert told["unnamed_endpoints"] == {}
    names = [one["parameter_name"] for one in told["named_endpoints"]["/generate"]["parameters"]]
    assert names == ["prompt", "n", "settings"]
    names = [one["parameter_name"] for one in told["named_endpoints"]["/chat"]["parameters"]]
    assert names == ["message", "images", "draw", "new", "settings"]


def test_generate_makes_what_the_library_makes(client: Any, service: Service) -> None:
    files = client.predict(prompt="a red car", n=2, settings=FEW, api_name="/generate")
    wanted = [one.result(60) for one in service.start(["a red car"], n=2, **FEW).tickets]
    for file, result in zip(files, wanted, strict=True):
        path = Path(file["path"] if isinstance(file, dict) else file)
        with Image.open(path) as image:
            assert result.image is not None
            assert image.tobytes() == result.image.tobytes()
            assert image.info["seed"] == str(result.seed)


def test_images_are_edited_and_asked_about(client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    given = [handle_file(tmp_path / "red.png")]
    (file,) = client.predict(images=given, instruction="make it night", settings=FEW, api_name="/edit")
    with Image.open(file["path"] if isinstance(file, dict) else file) as image:
        assert image.size == (64, 48)
    assert client.predict(images=given, question="What is there?", api_name="/ask").strip()
    assert client.predict(images=[], question="Is it day?", api_name="/ask").strip()


def test_a_conversation_goes_on(client: Any, service: Service) -> None:
    drawn = client.predict(message="a red car", draw=True, settings=FEW, api_name="/chat")
    assert drawn["text"] == ""
    (file,) = drawn["images"]
    asked = client.predict(message="What colour is the car?", api_name="/chat")
    assert asked["images"] == []
    session = service.bagel.session()
    image = session.generate_image("a red car", num_timesteps=4, seed=7)
    with Image.open(file["path"] if isinstance(file, dict) else file) as first:
        assert first.tobytes() == image.tobytes()
    assert asked["text"] == session.generate_text("What colour is the car?")
    held = service.session_tokens
    assert held > 0, "the conversation is kept"
    client.predict(message="Is it day?", new=True, settings={"max_new_tokens": 1}, api_name="/chat")
    assert 0 < service.session_tokens <= held, "and forgotten for a new one"


def test_conversations_of_two_clients_are_two(client: Any, service: Service) -> None:
    from gradio_client import Client

    other = Client(client.src, verbose=False)
    client.predict(message="a red car", draw=True, new=True, settings=FEW, api_name="/chat")
    alone = service.bagel.session().generate_text("What did I ask for?", max_new_tokens=8)
    settings = {"max_new_tokens": 8}
    assert other.predict(message="What did I ask for?", settings=settings, api_name="/chat")["text"] == alone
    other.close()


def test_errors_are_sentences(client: Any, service: Service) -> None:
    from gradio_client.exceptions import AppError

    for call, sentence in (
        ({"prompt": "a", "settings": {"steps": 3}, "api_name": "/generate"}, "there is no setting 'steps'"),
        ({"prompt": "a", "settings": [3], "api_name": "/generate"}, "must be an object of settings by name"),
        ({"prompt": "a", "n": 100, "api_name": "/generate"}, "n is 100"),
        ({"images": [], "instruction": "night", "api_name": "/edit"}, "images is empty"),
        ({"images": ["/etc/passwd"], "question": "?", "api_name": "/ask"}, "is not an uploaded file"),
        ({"images": [{"path": "/etc/passwd"}], "question": "?", "api_name": "/ask"}, "passwd was not uploaded"),
        ({"message": "", "new": True, "api_name": "/chat"}, "there is nothing to answer"),
        ({"message": "a", "settings": {"size": [64, 64]}, "api_name": "/chat"}, "size is no setting of 'ask'"),
        ({"message": "a", "settings": "fast", "api_name": "/chat"}, "must be an object of settings by name"),
    ):
        with pytest.raises(AppError, match=sentence):
            client.predict(**call)
    assert service.present == 0
