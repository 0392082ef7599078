"""The page on the embedded model, and a browser to look at it with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot.app.context import PageContext
from bagel_mot.app.page import create_page
from bagel_mot.app.state import TabStates
from bagel_mot.app.style import page_options
from bagel_mot.app.texts.language import Labels
from bagel_mot.inference.api import Bagel
from bagel_mot.serving.service import Service
from tests.holding import Hold, held_engines

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "artifacts" / "screenshots"
README_IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """On a model this small, threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def service() -> Service:
    return Service(Bagel.from_pretrained("mini", device="cpu"))


@pytest.fixture
def context(service: Service) -> Iterator[PageContext]:
    """The context of an empty page."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False):
        yield PageContext(service, TabStates(), Labels("en"), gr.Radio())


class Served:
    """A page that is being served."""

    def __init__(self, service: Service, url: str, tabs: TabStates) -> None:
        self.service, self.url, self.tabs = service, url, tabs


@pytest.fixture(scope="package")
def served(service: Service) -> Iterator[Served]:
    tabs = TabStates()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bagel_mot.app.page.TabStates", lambda: tabs)
        page = create_page(service, name="mini")
    _, url, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **page_options())
    yield Served(service, url, tabs)
    page.close(verbose=False)


def free_port() -> int:
    from bagel_mot.serving.edge.run import listen

    with listen("127.0.0.1", 0) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium. Without it these tests are skipped, or fail where BAGEL_REQUIRE_BROWSER=1."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    missing = "" if found else "no Chromium is installed (Debian: apt-get install chromium)"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = 'playwright is not installed: pip install -e ".[dev]"'
    if missing:
        if os.environ.get("BAGEL_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Opens the page as a visitor of one's own; fails where it asks any other host, or its scripts fail."""
    contexts: list[Any] = []
    elsewhere: list[str] = []
    failures: list[str] = []

    def opened(width: int = 1200, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: _note(elsewhere, request.url, served.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(served.url)
        page.wait_for_selector("#create-run")
        page.wait_for_timeout(300)  # fields that the toolkit is still putting in forget what is typed
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not elsewhere, f"the page asked {elsewhere}"
    assert not failures, f"scripts failed: {failures}"


def _note(elsewhere: list[str], url: str, own: str) -> None:
    if not url.startswith((own, "data:", "blob:")):
        elsewhere.append(url)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    with held_engines(monkeypatch) as hold:
        yield hold


@pytest.fixture
def shot() -> Callable[..., None]:
    """Keeps a picture of the page; with BAGEL_README_SCREENSHOTS=1 also those that the README shows."""

    def take(page: Any, name: str, readme: bool = False, full: bool = True) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(400)  # transitions
        page.screenshot(path=path, full_page=full)
        if readme and os.environ.get("BAGEL_README_SCREENSHOTS") == "1":
            shutil.copyfile(path, README_IMAGES / f"app-{name}.png")

    return take
