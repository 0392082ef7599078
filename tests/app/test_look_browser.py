"""How the page looks and is used: contrast, keyboard, what is kept over a reload, and what is shown where."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.app.visiting import Open, Shot, answered, draw, drawn, go, sentence
from tests.holding import Hold

pytestmark = pytest.mark.slow

CONTRAST = """([selector, what, pseudo]) => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1)
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data
        return [r, g, b, a / 255]
    }
    const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]))
    const behind = (one) => {
        if (!one) return [255, 255, 255]
        return over(rgba(getComputedStyle(one).backgroundColor), behind(one.parentElement))
    }
    const light = (color) => {
        const [r, g, b] = color.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        return .2126 * r + .7152 * g + .0722 * b
    }
    const one = document.querySelector(selector), inside = what == 'color'
    const below = behind(inside ? one : one.parentElement)
    const style = getComputedStyle(one, pseudo || null)
    const own = over(rgba(inside ? style.color : style.borderTopColor), below)
    const [a, b] = [light(own), light(below)].sort((x, y) => y - x)
    return (a + .05) / (b + .05)
}"""
LINES = ("#create-think input", "#create-count input[type=number]", "#create-prompt textarea", "#create-reset")
TEXTS = (
    ("#create-prompt textarea", "::placeholder"),
    ("#create-run", ""),
    ("#create-reset", ""),
    ("#create-preset label.selected span", ""),
    ("#create-preset label:not(.selected) span", ""),
    (".bagel-head p", ""),
    ("#create-empty span", ""),
    ("#create-size [data-testid=block-info]", ""),
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_and_texts_can_be_told_from_what_is_below_them(open_page: Open, shot: Shot, scheme: str) -> None:
    """WCAG 2, level AA: 3:1 for the edges of controls, 4.5:1 for texts."""
    page = open_page(width=1440, color_scheme=scheme)
    page.click("#create-group-thinking button")
    page.wait_for_selector("#create-think input")
    page.wait_for_timeout(500)
    for selector in LINES:
        assert page.evaluate(CONTRAST, [selector, "border", ""]) >= 3, f"the edge of {selector}"
    for selector, pseudo in TEXTS:
        assert page.evaluate(CONTRAST, [selector, "color", pseudo]) >= 4.5, f"the text of {selector}{pseudo}"
    thumb = page.evaluate(
        """() => [...document.styleSheets].flatMap(sheet => { try { return [...sheet.cssRules] } catch { return [] } })
            .map(rule => rule.cssText).filter(text => text.includes('slider-thumb') && text.includes('--bagel-line'))
            .length"""
    )
    assert thumb >= 1, "a slider's thumb has an edge in the colour of the other edges"
    shot(page, f"look-{scheme}", full=False)


def test_the_page_can_be_used_with_the_keyboard(open_page: Open) -> None:
    page = open_page()
    page.focus("#create-prompt textarea")
    page.keyboard.type("a red car")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("at night")
    assert page.input_value("#create-prompt textarea") == "a red car\nat night"
    page.keyboard.press("Tab")
    focused = "document.activeElement.id || document.activeElement.closest('[id]').id"
    assert page.evaluate(focused) == "create-run", "the button follows the text"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px", "it is seen where one is"
    page.focus("#create-prompt textarea")
    page.keyboard.press("Enter")
    (image,) = drawn(page)
    assert image.info["prompt"] == "a red car\nat night"


def test_results_settings_and_language_outlast_a_reload(open_page: Open, shot: Shot) -> None:
    page = open_page(width=1440)
    page.locator("#create-preset label", has_text="Fast").click()
    draw(page, "a red car")
    (first,) = drawn(page)
    page.wait_for_timeout(300)
    draw(page, "a blue star at night")
    page.wait_for_function("document.querySelectorAll('#create-history img').length == 2")
    page.fill("#create-prompt textarea", "something else")
    page.get_by_text("中文", exact=True).click()
    page.wait_for_selector("#create-run >> text=开始画")
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_selector("#create-run >> text=开始画")
    page.wait_for_function("document.querySelector('#create-prompt textarea').value == 'something else'")
    page.wait_for_function("document.querySelectorAll('#create-history img').length == 2")
    page.wait_for_selector("#create-facts >> text=a blue star at night")
    assert page.locator("#create-preset label.selected").inner_text().strip() == "快速"
    page.locator("#create-history button.thumbnail-item").nth(1).click()
    page.wait_for_selector(f"#create-facts >> text={first.info['seed']}")
    page.click("#create-use-settings")
    page.wait_for_function("document.querySelector('#create-prompt textarea').value == 'a red car'")
    shot(page, "create-history", full=False)
    page.click("#create-run")
    page.wait_for_function("document.querySelectorAll('#create-history img').length == 3")
    (again,) = drawn(page)
    assert again.tobytes() == first.tobytes(), "its settings draw it again"
    other = open_page()
    assert other.locator("#create-history img").count() == 0, "another visitor sees nothing of it"
    page.click("#create-clear-history")
    page.click("#create-clear-history-yes")
    page.wait_for_selector("#create-history-box", state="detached")


def test_answers_outlast_a_reload(open_page: Open, shot: Shot) -> None:
    page = open_page(width=1440)
    go(page, "Ask")
    assert page.locator("#ask-history-box").count() == 0
    ask(page, "Is it day?")
    page.click("#ask-examples >> text=What colour is the car?")
    page.wait_for_selector("#ask-pictures img")
    ask(page, "What colour is the car?")
    answer = page.input_value("#ask-answer textarea")
    rows = "[...document.querySelectorAll('#ask-history .gallery-item')].map(one => one.innerText.trim())"
    page.wait_for_function(f"{rows}.length == 2")
    assert page.evaluate(rows)[0] == f"What colour is the car? → {answer}"
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_selector("#create-run")
    go(page, "Ask")
    page.wait_for_function("document.querySelector('#ask-question textarea').value == 'What colour is the car?'")
    page.wait_for_function("answer => document.querySelector('#ask-answer textarea').value == answer", arg=answer)
    page.wait_for_selector("#ask-facts .bagel-asked img")
    page.wait_for_function(f"{rows}.length == 2")
    page.locator("#ask-history .gallery-item").nth(1).click()
    page.wait_for_selector("#ask-facts >> text=Is it day?")
    assert page.locator("#ask-facts .bagel-asked img").count() == 0, "it was asked about no picture"
    shot(page, "ask-history", full=False)
    page.click("#ask-use-question")
    page.wait_for_function("document.querySelector('#ask-question textarea').value == 'Is it day?'")
    page.wait_for_selector("#ask-pictures img", state="detached")
    page.locator("#ask-history .gallery-item").first.click()
    page.wait_for_selector("#ask-facts >> text=What colour is the car?")
    page.click("#ask-use-question")
    page.wait_for_selector("#ask-pictures img")
    other = open_page()
    go(other, "Ask")
    assert other.locator("#ask-history-box").count() == 0, "another visitor sees nothing of it"
    page.click("#ask-clear-answers")
    page.click("#ask-clear-answers-yes")
    page.wait_for_selector("#ask-history-box", state="detached")


def ask(page: Any, question: str) -> None:
    page.fill("#ask-question textarea", question)
    page.press("#ask-question textarea", "Enter")
    page.wait_for_selector(f"#ask-history .gallery-item >> text={question}")
    page.wait_for_selector("#ask-run", state="visible")


@pytest.mark.parametrize("tab", ["Edit", "Ask"])
def test_images_given_outlast_a_reload(open_page: Open, tmp_path: Path, tab: str) -> None:
    page, own = open_page(), f"#{tab.lower()}-pictures"
    go(page, tab)
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"{colour}.png")
    page.set_input_files(f"{own} input[type=file]", [tmp_path / "red.png", tmp_path / "blue.png"])
    page.wait_for_selector(f"{own}-title b >> text=2")
    page.wait_for_timeout(500)
    sources = "all => all.map(one => one.src)"
    before = page.eval_on_selector_all(f"{own} img", sources)
    page.reload()
    page.wait_for_selector("#create-run")
    go(page, tab)
    page.wait_for_selector(f"{own}-title b >> text=2")
    page.wait_for_function(f"document.querySelectorAll('{own} img').length == 2")
    assert [one.split("/")[-1] for one in page.eval_on_selector_all(f"{own} img", sources)] == ["red.png", "blue.png"]
    assert page.locator(".toast-body").count() == 0
    gone = Path(urllib.parse.unquote(before[0].split("file=")[-1]))
    gone.unlink()
    page.reload()
    page.wait_for_selector("#create-run")
    assert "1 of the 2 pictures that were here are not on the server any more" in sentence(page)
    go(page, tab)
    page.wait_for_selector(f"{own}-title b >> text=1")
    page.locator(f"{own} img").first.hover()
    kept = page.evaluate("JSON.stringify(localStorage)")
    page.locator(f"{own} .delete-button").first.click()
    page.wait_for_selector(f"{own} img", state="detached")
    page.wait_for_function("kept => JSON.stringify(localStorage) != kept", arg=kept)
    page.reload()
    page.wait_for_selector("#create-run")
    go(page, tab)
    page.wait_for_timeout(500)
    assert page.locator(f"{own} img").count() == 0, "what was removed stays away"


ROOM = """(size) => {
    const input = document.querySelector(size + ' input'), arrow = document.querySelector(size + ' .icon-wrap')
    const style = getComputedStyle(input), box = input.getBoundingClientRect()
    const context = new OffscreenCanvas(1, 1).getContext('2d')
    context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`
    const end = box.right - parseFloat(style.paddingRight)
    const text = box.left + parseFloat(style.paddingLeft) + context.measureText(input.value).width
    return [text, end, arrow.getBoundingClientRect().left]
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_the_words_of_a_size_end_before_the_arrow(open_page: Open, shot: Shot, width: int, scheme: str) -> None:
    page = open_page(width=width, color_scheme=scheme)
    for tab in ("Create", "Edit", "Chat"):
        go(page, tab)
        size = f"#{tab.lower()}-size"
        page.wait_for_function(f"document.querySelector('{size} input').value != ''")
        text, end, arrow = page.evaluate(ROOM, size)
        assert end <= arrow, f"{tab}: the field of the text ends before the arrow"
        assert text <= end + 1, f"{tab}: the text is cut off"
        shot(page, f"size-{tab.lower()}-{width}-{scheme}", full=False)


def test_conversations_outlast_a_reload(open_page: Open) -> None:
    page = open_page()
    go(page, "Chat")
    page.fill("#chat-box textarea", "a red car on the grass")
    page.click("#chat-draw")
    answered(page, "a red car on the grass", 1)
    page.reload()
    page.wait_for_selector("#create-run")
    go(page, "Chat")
    answered(page, "a red car on the grass", 1)
    page.fill("#chat-box textarea", "What colour is the car?")
    page.press("#chat-box textarea", "Enter")
    answered(page, "What colour is the car?", 1)
    page.wait_for_selector("#chat-log .bot >> text=red")


def test_previews_of_a_chat_are_in_the_conversation_and_nothing_jumps(open_page: Open, shot: Shot, hold: Hold) -> None:
    page = open_page(width=1440)
    go(page, "Chat")
    page.wait_for_selector("#chat-box textarea")
    before = page.locator("#chat-box").bounding_box()
    page.fill("#chat-box textarea", "a red car")
    hold.after(20)
    page.click("#chat-draw")
    page.wait_for_selector("#chat-log img.bagel-preview")
    assert page.locator("#chat-box").bounding_box()["y"] == before["y"]
    shot(page, "chat-forming", full=False)
    hold.release()
    answered(page, "a red car", 1)
    assert page.locator("#chat-box").bounding_box()["y"] == before["y"]


def test_images_given_are_all_seen_counted_moved_and_removed(open_page: Open, shot: Shot, tmp_path: Path) -> None:
    page = open_page()
    go(page, "Edit")
    colours = ("red", "green", "blue", "navy", "pink")
    for place, colour in enumerate(colours):
        Image.new("RGB", (64 + 20 * place, 64), colour).save(tmp_path / f"{colour}.png")
    page.set_input_files("#edit-pictures input[type=file]", [tmp_path / f"{one}.png" for one in colours])
    page.wait_for_function("document.querySelectorAll('#edit-pictures img').length == 5")
    page.wait_for_selector("#edit-pictures-title b >> text=5")
    frame = page.locator("#edit-pictures").bounding_box()
    for number in range(5):
        box = page.locator("#edit-pictures img").nth(number).bounding_box()
        assert frame["y"] <= box["y"]
        assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1
    assert page.eval_on_selector("#edit-pictures img", "one => getComputedStyle(one).objectFit") == "contain"
    page.locator("#edit-pictures button.thumbnail-item").nth(2).click()
    page.click("#edit-earlier")
    assert wait_for_names(page) == ["red", "blue", "green", "navy", "pink"]
    page.locator("#edit-pictures .delete-button").first.click()
    page.wait_for_selector("#edit-pictures-title b >> text=4")
    shot(page, "edit-five", full=False)


def wait_for_names(page: Any) -> list[str]:
    page.wait_for_function("document.querySelectorAll('#edit-pictures img')[1].src.includes('blue')")
    names = page.eval_on_selector_all("#edit-pictures img", "all => all.map(one => one.src.split('/').pop())")
    return [name.removesuffix(".png") for name in names]


def test_settings_are_shown_where_they_have_an_effect(open_page: Open) -> None:
    page = open_page()
    page.click("#create-group-thinking button")
    page.wait_for_selector("#create-think input")
    assert page.locator("#create-temperature, #create-do-sample, #create-cfg-image-scale").count() == 0
    page.check("#create-think input")
    page.wait_for_selector("#create-do-sample input")
    assert page.locator("#create-temperature").count() == 0
    page.check("#create-do-sample input")
    page.wait_for_selector("#create-temperature")
    page.hover("#create-do-sample")
    page.wait_for_function(
        "getComputedStyle(document.querySelector('#create-do-sample .info-text')).visibility == 'visible'"
    )


def test_a_greedy_answer_has_no_seed(open_page: Open) -> None:
    page = open_page()
    go(page, "Ask")
    page.click("#ask-run")
    assert "there is no question yet" in sentence(page)
    page.click("#ask-examples >> text=How many cars are there?")
    page.wait_for_selector("#ask-pictures img")
    page.press("#ask-question textarea", "Enter")
    page.wait_for_selector("#ask-facts .bagel-note")
    assert "seed" not in page.inner_text("#ask-facts")


def test_a_prompt_outside_of_what_the_model_knows_is_told(open_page: Open) -> None:
    page = open_page()
    page.fill("#create-prompt textarea", "a photo of a corgi")
    page.wait_for_selector("#create-hint >> text=has never read")
    page.get_by_text("中文", exact=True).click()
    page.wait_for_selector("#create-hint >> text=这个模型从未读过")
    page.fill("#create-prompt textarea", "a red car")
    page.wait_for_selector("#create-hint .bagel-hint", state="detached")
