"""The page in a headless browser: every part does its job from the click to the picture."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.checkpoint.side_files import DEFAULTS_FILE
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.serving.service import Service
from tests.app.visiting import Open, Shot, answered, draw, drawn, forming, go, sentence, steps, wait_until
from tests.holding import Hold

pytestmark = pytest.mark.slow

BALANCED = json.loads((MINI_FOLDER / DEFAULTS_FILE).read_text(encoding="utf-8"))["generate"]["num_timesteps"]
FAST, FINE = round(BALANCED / 2), 2 * BALANCED


def test_create_draws_while_one_watches(open_page: Open, shot: Shot, hold: Hold) -> None:
    page = open_page()
    steps(page, 80)
    page.click("#create-group-steps button")
    hold.after(40)
    draw(page, "a red car")
    forming(page, "create")
    page.wait_for_function("/\\d\\ss left/.test(document.querySelector('#create-progress').innerText)")
    assert 0 < int(page.get_attribute("#create-progress [role=progressbar]", "aria-valuenow")) < 100
    shot(page, "create-forming", full=False)
    preview = page.locator("#create-progress img.bagel-preview").bounding_box()
    hold.release()
    (image,) = drawn(page)
    assert image.size == (64, 64)
    assert image.info["prompt"] == "a red car"
    final = page.locator("#create-gallery img").first.bounding_box()
    assert abs(preview["width"] - final["width"]) < 0.25 * final["width"], "a preview is as large as its picture"
    assert page.query_selector("#create-progress .bagel-progress") is None
    assert f"seed {image.info['seed']} · 64×64 · 79 steps" in page.inner_text("#create-facts")
    shot(page, "create-watched", full=False)


@pytest.mark.screenshot
def test_several_images_and_the_way_to_edit_and_ask(open_page: Open, shot: Shot) -> None:
    page = open_page()
    seed(page, "7")
    page.fill("#create-count input[type=number]", "4")
    page.press("#create-count input[type=number]", "Tab")
    draw(page, "a blue star at night")
    images = drawn(page)
    assert [image.info["seed"] for image in images] == ["7", "8", "9", "10"]
    shot(page, "create", readme=True, full=False)
    shown = page.locator("#create-gallery .grid-container img")
    assert shown.count() == 4
    for number in range(4):
        box, frame = shown.nth(number).bounding_box(), page.locator("#create-gallery").bounding_box()
        assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1, "the whole of it is seen"
        assert abs(box["width"] - box["height"]) < 2, "and nothing is cut off"
    page.locator("#create-gallery button.thumbnail-item").nth(2).click()
    page.click("#create-to-edit")
    page.wait_for_selector("#edit-run", state="visible")
    page.wait_for_function("document.querySelector('#edit-pictures img').src.includes('bagel-9')")
    go(page, "Create")
    page.click("#create-to-ask")
    page.wait_for_selector("#ask-run", state="visible")
    page.wait_for_function("document.querySelector('#ask-pictures img').src.includes('bagel-9')")


@pytest.mark.screenshot
def test_edit_goes_on_from_its_own_result(open_page: Open, shot: Shot, tmp_path: Path) -> None:
    page = open_page()
    go(page, "Edit")
    assert page.locator("#edit-pictures img").count() == 0, "it begins empty"
    page.click("#edit-examples >> text=change the background to night")
    page.wait_for_selector("#edit-pictures img")
    page.press("#edit-instruction textarea", "Enter")
    (first,) = drawn(page, "edit")
    shot(page, "edit", readme=True, full=False)
    page.click("#edit-again")
    page.wait_for_function(f"document.querySelector('#edit-pictures img').src.includes('bagel-{first.info['seed']}')")
    Image.new("RGB", (80, 64), "navy").save(tmp_path / "second.png")
    page.set_input_files("#edit-pictures input[type=file]", tmp_path / "second.png")
    page.wait_for_function("document.querySelectorAll('#edit-pictures img').length == 2")
    seed(page, "5", "edit")
    draw(page, "make the car blue", "edit", "instruction")
    page.wait_for_selector("#edit-facts >> text=seed 5")
    (second,) = drawn(page, "edit")
    assert second.info["prompt"] == "make the car blue"
    assert second.size == (64, 48), "the size follows the last picture: 80×64, resized for the model"


@pytest.mark.screenshot
def test_ask_writes_its_answer(open_page: Open, shot: Shot) -> None:
    page = open_page()
    go(page, "Ask")
    page.click("#ask-examples >> text=What colour is the car?")
    page.wait_for_function("document.querySelector('#ask-question textarea').value != ''")
    page.wait_for_selector("#ask-pictures img")
    page.click("#ask-group-thinking button")
    page.check("#ask-think input")
    page.click("#ask-run")
    page.wait_for_selector("#ask-facts .bagel-note")
    assert page.input_value("#ask-answer textarea")
    page.wait_for_selector("#ask-run", state="visible")
    page.click("#ask-facts summary")
    shot(page, "ask", readme=True, full=False)


def test_thinking_is_shown_as_it_is_written(open_page: Open, shot: Shot, hold: Hold) -> None:
    page = open_page()
    page.click("#create-group-thinking button")
    page.check("#create-think input")
    steps(page, 80)
    page.click("#create-group-steps button")
    hold.after(8)
    draw(page, "draw as many white stars as a car has wheels")
    page.wait_for_selector("#create-progress .bagel-thinking p")
    thought = page.inner_text("#create-progress .bagel-thinking")
    assert "think>" not in thought
    shot(page, "create-thinking", full=False)
    hold.release()
    (image,) = drawn(page)
    assert image.info["thinking"]
    page.click("#create-facts summary")
    assert image.info["thinking"] in page.inner_text("#create-facts")


@pytest.mark.parametrize("part", ["create", "chat"])
def test_stop_ends_the_request_within_a_step(
    open_page: Open, service: Service, shot: Shot, monkeypatch: pytest.MonkeyPatch, hold: Hold, part: str
) -> None:
    page = open_page()
    if part == "chat":
        go(page, "Chat")
    steps(page, 250, part)
    page.click(f"#{part}-group-steps button")
    hold.after(40)
    if part == "chat":
        page.fill("#chat-box textarea", "a red car")
        page.click("#chat-draw")
    else:
        draw(page, "a red car")
    forming(page, part)
    made_when_cancelled: list[int] = []
    cancel = Ticket.cancel
    noted = lambda ticket, *why: (cancel(ticket, *why), made_when_cancelled.append(hold.made))  # noqa: E731
    monkeypatch.setattr(Ticket, "cancel", noted)
    page.click(f"#{part}-stop")
    wait_until(lambda: bool(made_when_cancelled))
    hold.release()
    page.wait_for_selector(f"#{part}-run", state="visible")
    assert hold.made <= made_when_cancelled[0] + 1, "at most the step that was being made when Stop came"
    assert service.bagel.engine.idle
    pattern = re.compile(r"Stopped after step (\d+) of (\d+)")
    # Looked for again and again: the page puts the progress in anew whenever something in it changes.
    progress = f"#{part}-progress"
    wait_until(lambda: bool(pattern.search(page.inner_text(progress))), state=lambda: page.inner_html(progress))
    (told,) = pattern.findall(page.inner_text(progress))
    assert int(told[0]) < int(told[1]) == 249
    assert service.present == 0
    if part == "chat":
        # What was said comes back, to be said anew.
        page.wait_for_function("document.querySelector('#chat-box textarea').value == 'a red car'")
        assert "a red car" not in page.inner_text("#chat-log")
    else:
        shot(page, "create-stopped", full=False)


def test_what_is_wrong_is_said_in_one_sentence(
    open_page: Open, service: Service, shot: Shot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page()
    page.click("#create-run")
    assert "there is no text yet: write what you want first" in sentence(page)
    seed(page, "seven")
    draw(page, "a cup")
    assert "seed is 'seven': it must be a whole number, 0 to 2⁶³ − 1 or none" in sentence(page)
    page.fill("#create-seed input", "")
    with ExitStack() as places:
        for _ in range(service.limits.queue):
            places.enter_context(service.place())
        page.click("#create-run")
        said = sentence(page)
        assert "try again later" in said, said
    with monkeypatch.context() as patch:
        patch.setattr(service, "start", lambda *_, **__: 1 / 0)
        page.click("#create-run")
        shown = sentence(page)
        assert "something went wrong on the server" in shown
        assert "Zero" not in shown
    page.wait_for_selector("#create-run", state="visible")

    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    go(page, "Edit")
    upload(page, "edit", tmp_path / "red.png", tmp_path / "broken.png", tmp_path / "notes.txt")
    page.wait_for_selector(".toast-body >> text=notes.txt")
    shot(page, "broken-upload", full=False)
    said = sentence(page)
    assert "notes.txt is not in a known picture format" in said
    assert "broken.png" in said
    assert "/" not in said, "no path of the server"
    page.wait_for_function("document.querySelectorAll('#edit-pictures img').length == 1")
    go(page, "Create")
    draw(page, "a cup")
    drawn(page)


def test_an_image_restores_its_prompt_and_settings(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    page.click("#create-group-steps button")
    preset(page, "Fast")
    wait_for_steps(page, FAST)
    seed(page, "11")
    draw(page, "a yellow sun 太阳")
    (image,) = drawn(page)
    source = page.get_attribute("#create-gallery img", "src")
    with urllib.request.urlopen(source) as answer:
        (tmp_path / "sun.png").write_bytes(answer.read())
    assert image.info["prompt"] == "a yellow sun 太阳"

    other = open_page()
    other.click("#create-restore-title button")
    other.set_input_files("#create-restore-file input[type=file]", tmp_path / "sun.png")
    other.wait_for_function("document.querySelector('#create-prompt textarea').value == 'a yellow sun 太阳'")
    other.click("#create-group-seed button")
    assert other.input_value("#create-seed input") == "11"
    other.click("#create-group-steps button")
    assert other.input_value("#create-num-timesteps input[type=number]") == str(FAST)
    other.click("#create-run")
    (again,) = drawn(other)
    assert again.tobytes() == image.tobytes(), "the same picture"


def seed(page: Any, value: str, part: str = "create") -> None:
    page.click(f"#{part}-group-seed button")
    page.wait_for_selector(f"#{part}-seed input")
    page.wait_for_timeout(300)
    page.fill(f"#{part}-seed input", value)


def preset(page: Any, name: str) -> None:
    page.locator("#create-preset label", has_text=name).click()


def chosen_preset(page: Any) -> list[str]:
    return [one.strip() for one in page.locator("#create-preset label.selected").all_inner_texts()]


def upload(page: Any, part: str, *files: Path) -> None:
    page.set_input_files(f"#{part}-pictures input[type=file]", list(files))


def wait_for_steps(page: Any, timesteps: int) -> None:
    page.wait_for_function(f"document.querySelector('#create-num-timesteps input[type=number]').value == '{timesteps}'")


def test_seeds_presets_and_reset(open_page: Open) -> None:
    page = open_page()
    page.click("#create-group-seed button")
    page.click("#create-dice")
    page.wait_for_function("/^\\d+$/.test(document.querySelector('#create-seed input').value)")
    rolled = page.input_value("#create-seed input")
    page.click("#create-group-steps button")
    preset(page, "Fine")
    wait_for_steps(page, FINE)
    assert chosen_preset(page) == ["Fine"]
    page.fill("#create-num-timesteps input[type=number]", "21")
    page.press("#create-num-timesteps input[type=number]", "Tab")
    wait_until(lambda: chosen_preset(page) == [])
    preset(page, "Fast")
    wait_for_steps(page, FAST)
    draw(page, "a cup")
    (image,) = drawn(page)
    assert image.info["seed"] == rolled
    page.click("#create-no-seed")
    page.wait_for_function("document.querySelector('#create-seed input').value == ''")
    page.click("#create-last-seed")
    page.wait_for_function(f"document.querySelector('#create-seed input').value == '{rolled}'")
    page.click("#create-reset")
    wait_for_steps(page, BALANCED)
    wait_until(lambda: chosen_preset(page) == ["Balanced"])
    assert page.input_value("#create-seed input") == ""


@pytest.mark.screenshot
def test_the_language_can_be_switched(open_page: Open, shot: Shot) -> None:
    page = open_page()
    page.fill("#create-prompt textarea", "a cup")
    page.get_by_text("中文", exact=True).click()
    page.wait_for_selector("#create-run >> text=开始画")
    assert page.input_value("#create-prompt textarea") == "a cup"
    page.click("#create-group-steps button")
    page.click("#create-group-guidance button")
    page.wait_for_selector("#create-group-guidance >> text=文字引导")
    seed(page, "x")
    page.click("#create-run")
    assert "seed 的值 'x' 不合适：应为 整数，0 到 2⁶³ − 1，或留空。" in sentence(page)
    page.fill("#create-seed input", "3")
    page.click("#create-run")
    drawn(page)
    assert "种子 3" in page.inner_text("#create-facts")
    shot(page, "create-chinese-settings")
    page.click("#create-group-steps button")
    shot(page, "create-chinese", readme=True, full=False)
    go(page, "对话")
    shot(page, "chat-chinese", full=False)
    page.get_by_text("English", exact=True).click()
    page.wait_for_selector("#create-run >> text=Draw", state="attached")


@pytest.mark.screenshot
@pytest.mark.parametrize("language", ["English", "中文"])
def test_a_phone_is_wide_enough(open_page: Open, shot: Shot, language: str) -> None:
    page = open_page(width=390, height=844, has_touch=True, is_mobile=True)
    page.get_by_text(language, exact=True).click()
    for number, part in enumerate(("create", "edit", "ask", "chat")):
        page.get_by_role("tab").nth(number).click()
        page.wait_for_selector(f"#{part}-run", state="visible")
        if part == "create":
            draw(page, "a red car")
            drawn(page)
        page.click(f"#{part}-group-thinking button")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, part
        page.click(f"#{part}-group-thinking button")
        shot(
            page, f"phone-{part}" + "-chinese" * (language == "中文"), readme=(part, language) == ("create", "English")
        )


def test_two_visitors_share_one_model(open_page: Open, service: Service, hold: Hold) -> None:
    first, second = open_page(), open_page()
    for page in (first, second):
        steps(page, 100)
    hold.after(1)
    draw(first, "a red car")
    draw(second, "a blue fish")
    wait_until(lambda: service.present == 2)
    hold.release()
    done = service.bagel.engine.stats.steps
    assert drawn(first)[0].info["prompt"] == "a red car"
    assert drawn(second)[0].info["prompt"] == "a blue fish"
    assert service.bagel.engine.stats.steps - done < 150, "they drew together"


def test_what_belongs_to_a_tab_goes_with_it(open_page: Open, service: Service, served: Any, hold: Hold) -> None:
    wait_until(lambda: not len(served.tabs))  # those of the tests before are gone
    page = open_page()
    wait_until(lambda: len(served.tabs) == 1)  # the server hears of a page after the page is there
    go(page, "Chat")
    page.fill("#chat-box textarea", "a red car")
    page.click("#chat-draw")
    answered(page, "a red car", 1)
    assert served.tabs.tokens > 0
    assert len(served.tabs) == 1
    go(page, "Create")
    steps(page, 250)
    hold.after(40)
    draw(page, "a cup")
    forming(page, "create")
    page.context.close()
    wait_until(lambda: not len(served.tabs))
    made = hold.made
    hold.release()
    wait_until(lambda: service.bagel.engine.idle)
    assert hold.made <= made + 1
    assert service.present == 0
