"""The chat in a headless browser."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from PIL import Image

from bagel_mot.serving.service import Service
from tests.app.visiting import Open, Shot, answered, go, sentence

pytestmark = pytest.mark.slow


@pytest.mark.screenshot
def test_chat_draws_answers_branches_and_goes_back(open_page: Open, shot: Shot) -> None:
    page = open_page()
    go(page, "Chat")
    box = "#chat-box textarea"
    page.fill(box, "a red car on the grass")
    page.click("#chat-draw")
    answered(page, "a red car on the grass", 1)
    page.fill(box, "What colour is the car?")
    page.press(box, "Enter")
    page.wait_for_selector("#chat-log .bot >> text=/\\w/")
    answered(page, "What colour is the car?", 1)
    shot(page, "chat", readme=True, full=False)
    before = page.inner_text("#chat-log .message-wrap")
    page.click("#chat-branch")
    page.wait_for_function("document.querySelector('#chat-switch input').value.startsWith('2 ← 1')")
    page.click("#chat-undo")
    page.wait_for_function("!document.querySelector('#chat-log').innerText.includes('What colour')")
    page.fill(box, "change the background to night")
    page.click("#chat-draw")
    answered(page, "change the background to night", 2)
    shot(page, "chat-branch", full=False)
    page.click("#chat-switch input")
    page.get_by_role("option", name=re.compile("^1 ·")).click()
    page.wait_for_function("document.querySelector('#chat-log').innerText.includes('What colour')")
    assert page.inner_text("#chat-log .message-wrap") == before
    page.click("#chat-close")
    page.wait_for_selector("#chat-close-sure >> text=cannot be opened again")
    page.click("#chat-close-no")
    page.wait_for_selector("#chat-close-sure", state="detached")
    assert page.inner_text("#chat-log .message-wrap") == before, "nothing is lost by a slip"
    page.click("#chat-close")
    page.click("#chat-close-yes")
    page.wait_for_function("document.querySelectorAll('#chat-log .bot img').length == 2")


def test_chat_takes_images_while_there_is_room(
    open_page: Open, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page()
    go(page, "Chat")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    page.set_input_files("#chat-box input[type=file]", tmp_path / "blue.png")
    page.wait_for_selector("#chat-box img")
    page.fill("#chat-box textarea", "What is in the picture?")
    page.click("#chat-run")
    page.wait_for_selector("#chat-log .bot >> text=/\\w/")
    answered(page, "What is in the picture?", 0)
    assert page.query_selector("#chat-log .user img")
    monkeypatch.setattr(service, "capacity", dataclasses.replace(service.capacity, cache_tokens=1))
    page.fill("#chat-box textarea", "And what else?")
    page.click("#chat-run")
    assert "close one, or try again later" in sentence(page)
