"""Errors in the reader's language: those that visitors meet are translated whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import bagel_mot.app
from bagel_mot.app.context import sentence_of
from bagel_mot.app.image_files import open_uploads
from bagel_mot.app.texts.errors import translate
from bagel_mot.errors import BagelError, PromptError
from bagel_mot.serving.service import Limits, Service

NAMES = re.compile(
    r"num_timesteps|temperature|cfg_interval|seed|notes|broken|large|png|txt|low|high|PNG|JPEG|WebP|BAGEL"
)


def met(act: Callable[[], Any]) -> str:
    with pytest.raises(BagelError) as raised:
        act()
    return sentence_of(raised.value, "zh")


def test_what_visitors_meet_has_no_english_in_it(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "notes.txt").write_text("no picture")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(service, "limits", Limits(images=3, image_pixels=5000))
    found = {
        "notes.txt": met(lambda: open_uploads([str(tmp_path / "notes.txt")], service)),
        "broken.png": met(lambda: open_uploads([str(tmp_path / "broken.png")], service)),
        "large.png": met(lambda: open_uploads([str(tmp_path / "large.png")], service)),
        "4": met(lambda: open_uploads([str(tmp_path / "notes.txt")] * 4, service)),
        "": met(lambda: service.start([" "])),
        "-1": met(lambda: service.start(["a"], seed="-1")),
        "50×50": met(lambda: service.start(["a"], size=(50, 50))),
        "5000": met(lambda: service.start(["a"], num_timesteps=5000)),
        "99": met(lambda: service.start(["a"], n=99)),
    }
    for value, sentence in found.items():
        assert value in sentence
        assert not re.search("[A-Za-z]{2,}", NAMES.sub("", sentence)), sentence
        assert sentence.endswith("。")


def test_every_translation_has_the_values_of_its_sentence() -> None:
    path = Path(bagel_mot.app.__file__).parent / "texts" / "errors.yaml"
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        english, chinese = (set(re.findall(r"{(\w+)}", entry[language])) for language in ("en", "zh"))
        assert chinese <= english, entry
        values = {name: f"<{name}>" for name in english}
        assert translate(entry["en"].format(**values), "zh") is not None


def test_a_sentence_without_translation_says_what_kind_it_is() -> None:
    assert sentence_of(PromptError("something new"), "zh") == "文字无法使用：something new"
    assert sentence_of(PromptError("something new"), "en") == "something new"
