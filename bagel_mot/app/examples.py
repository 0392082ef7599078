"""What one can try with a click: texts that the embedded model understands, and images of its world."""

from __future__ import annotations

from bagel_mot.app.image_files import keep
from bagel_mot.app.sizes import default_size
from bagel_mot.inference.api import Bagel
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.scene import WORLD, Scene, Thing

PROMPTS = [
    "a red car",
    "three blue stars at night",
    "a yellow sun above a green tree",
    "a pink cat on the sand",
    "draw as many white stars as a car has wheels",
]
INSTRUCTIONS = ["make the car blue", "change the background to night", "remove the sun"]
QUESTIONS = ["How many cars are there?", "What colour is the car?", "Is there a sun?"]
MESSAGES = ["a red car on the grass", "change the background to night", "What colour is the car?"]
_LARGEST = 512


def example_image(bagel: Bagel) -> str:
    """The file of a red car below a yellow sun, about as large as the model's own images."""
    side = min(max(default_size(bagel)), _LARGEST) // WORLD * WORLD
    scene = Scene("grass", (Thing("sun", "yellow", "medium", "top right"), Thing("car", "red", "large", "bottom left")))
    return keep(draw(scene, max(side, WORLD)), "car-and-sun")
