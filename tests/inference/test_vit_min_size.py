"""`vit_min_size`: the ViT sees an image as it was given, resized once, as in the published evaluations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bagel_mot.errors import BagelError, SettingError
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.prepare import Preparer
from bagel_mot.inference.request import ImageInput
from bagel_mot.serving.service import Service
from bagel_mot.task import Task

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def mini() -> Bagel:
    return Bagel.from_pretrained("mini", device="cpu")


def seen(bagel: Bagel, **settings: int | None) -> ImageInput:
    (image,) = Preparer(bagel.runtime).inputs([PICTURE], Task.ASK, settings)
    assert isinstance(image, ImageInput)
    return image


def test_the_original_is_resized_once(mini: Bagel) -> None:
    vit = mini.defaults.vit_transform
    least = 2 * vit.stride
    wanted = replace(vit, min_size=least).resize(PICTURE)
    image = seen(mini, vit_min_size=least)
    assert image.vit_image.size == wanted.size
    assert image.vit_image.tobytes() == wanted.tobytes()
    assert image.vit_tokens == (wanted.width // vit.stride) * (wanted.height // vit.stride) + 2
    usual = seen(mini)
    assert usual.vit_image.tobytes() == vit.resize(mini.defaults.vae_transform.resize(PICTURE)).tobytes()
    assert seen(mini, vit_min_size=None).key == usual.key
    assert len({usual.key, image.key}) == 2  # the two are never read in place of one another


def test_an_edit_begins_with_the_same_image_and_sees_the_original(mini: Bagel) -> None:
    """The ViT's pixels and tokens are those of the original; the autoencoder's are as without the setting."""
    vit, vae = mini.defaults.vit_transform, mini.defaults.vae_transform
    least = 2 * vit.stride
    usual, image = (
        Preparer(mini.runtime).inputs([PICTURE], Task.EDIT, {"vit_min_size": one})[0] for one in (None, least)
    )
    assert isinstance(usual, ImageInput)
    assert isinstance(image, ImageInput)
    wanted = replace(vit, min_size=least).resize(PICTURE)
    assert image.vit_image.tobytes() == wanted.tobytes()
    assert image.vit_image.tobytes() != replace(vit, min_size=least).resize(vae.resize(PICTURE)).tobytes()
    assert image.image.tobytes() == usual.image.tobytes() == vae.resize(PICTURE).tobytes()
    assert image.vae_tokens == usual.vae_tokens
    assert image.vit_tokens == (wanted.width // vit.stride) * (wanted.height // vit.stride) + 2
    drawn = [
        mini.edit(PICTURE, "make the circle red", num_timesteps=2, seed=0, vit_min_size=one, return_result=True)
        for one in (None, least)
    ]
    assert drawn[0].image.size == drawn[1].image.size == usual.image.size
    assert drawn[0].image.tobytes() != drawn[1].image.tobytes()


def test_it_is_a_setting_of_each_request(mini: Bagel) -> None:
    least = 2 * mini.defaults.vit_transform.stride
    question = "how many things are there?"
    alone = [mini.ask(PICTURE, question, max_new_tokens=4, vit_min_size=one) for one in (None, least)]
    assert mini.ask(PICTURE, [question] * 2, max_new_tokens=4, vit_min_size=[None, least]) == alone
    assert "".join(mini.ask(PICTURE, question, max_new_tokens=4, vit_min_size=least, stream=True)) == alone[1]
    request = Service(mini).check([PICTURE, question], "text", {"vit_min_size": least})
    assert next(one.key for one in request.inputs) == seen(mini, vit_min_size=least).key


def test_what_cannot_be_is_refused(mini: Bagel) -> None:
    most = mini.defaults.vit_transform.max_size
    with pytest.raises(SettingError, match=f"vit_min_size is {most + 1}: it must be at most {most}, the longest side"):
        mini.ask(PICTURE, "what is it?", vit_min_size=most + 1)
    for wrong in (0, 3.5, "378", True):
        with pytest.raises(SettingError, match=r"vit_min_size is .*: it must be .*1 or more or none\."):
            mini.ask(PICTURE, "what is it?", vit_min_size=wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="vit_min_size is no setting of 'generate'"):
        mini.generate("a red car", vit_min_size=28)  # type: ignore[call-overload]
    with pytest.raises(BagelError, match="it must be at most"):
        Service(mini).check([PICTURE, "what is it?"], "text", {"vit_min_size": most + 1})
    session = mini.session()
    session.add(PICTURE)
    session.add("what is it?")
    with pytest.raises(SettingError, match="a session has read its pictures before it is asked"):
        session.generate_text(vit_min_size=28)
