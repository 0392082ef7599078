"""What a visitor of the page does, and waits for."""

from __future__ import annotations

import io
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from PIL import Image

Open, Shot = Callable[..., Any], Callable[..., None]


def go(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()


def draw(page: Any, prompt: str, part: str = "create", field: str = "prompt") -> None:
    page.fill(f"#{part}-{field} textarea", prompt)
    page.click(f"#{part}-run")


def drawn(page: Any, part: str = "create") -> list[Image.Image]:
    """Waits for a run to be over, and fetches what it drew as one would download it."""
    page.wait_for_selector(f"#{part}-facts .bagel-note")
    page.wait_for_selector(f"#{part}-run", state="visible")
    page.wait_for_selector(f"#{part}-gallery img")
    sources = page.eval_on_selector_all(f"#{part}-gallery img", "all => all.map(one => one.src)")
    images = []
    for source in dict.fromkeys(sources):
        with urllib.request.urlopen(source) as answer:
            images.append(Image.open(io.BytesIO(answer.read())))
    return images


def sentence(page: Any) -> str:
    """What the page says went wrong; closes it."""
    said = str(page.wait_for_selector(".toast-body").inner_text())
    page.evaluate("document.querySelector('.toast-close')?.click()")  # on a busy machine it may be gone by itself
    page.wait_for_selector(".toast-body", state="detached")
    return said


def forming(page: Any, part: str) -> None:
    """Waits for a first preview of an image; one that is finished before that is told from one that never began."""
    place = "#chat-log" if part == "chat" else f"#{part}-progress"
    page.wait_for_selector(f"{place} img.bagel-preview, #{part}-facts .bagel-note, .toast-body")
    facts, toasts = page.query_selector(f"#{part}-facts"), page.query_selector_all(".toast-body")
    said = [facts.inner_text() if facts else "", *(toast.inner_text() for toast in toasts)]
    assert page.query_selector(f"{place} img.bagel-preview"), f"no preview of the image, but {said}"


def answered(page: Any, said: str, images: int) -> None:
    """Waits until the chat has taken a turn whole, and its field is free again."""
    page.wait_for_function(
        """([said, pictures]) => {
            const log = document.querySelector('#chat-log'), field = document.querySelector('#chat-box textarea')
            return log.innerText.includes(said) && log.querySelectorAll('.bot img').length == pictures
                && field.value == '' && !field.disabled
        }""",
        arg=[said, images],
    )
    page.wait_for_selector("#chat-run", state="visible")
    page.wait_for_timeout(300)


def steps(page: Any, number: int, part: str = "create") -> None:
    page.click(f"#{part}-group-steps button")
    field = f"#{part}-num-timesteps input[type=number]"
    page.wait_for_selector(field)
    page.wait_for_timeout(300)  # what is typed while the toolkit still puts the field in is overwritten by its default
    page.fill(field, str(number))
    page.press(field, "Tab")
    page.wait_for_timeout(100)
    assert page.input_value(field) == str(number), "the page kept what was typed"


def wait_until(condition: Callable[[], bool], seconds: float = 120, state: Callable[[], str] = lambda: "") -> None:
    """Waits for `condition`; if it does not come about, says what there is instead."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come about; there is {state()!r}"
        time.sleep(0.05)
