"""The knowledge behind the riddles: clues to things, colours and backgrounds, and the numbers of parts of things.

Every clue means one entry of the world and no other, so that a riddle has one answer.
"""

from __future__ import annotations

KIND_CLUES: dict[str, tuple[str, ...]] = {
    "circle": ("the shape of a coin", "the shape of a wheel", "the shape without any corner"),
    "square": ("the shape with four equal sides", "the shape with four corners", "the shape of a chess board"),
    "triangle": ("the shape with three sides", "the shape with three corners", "the shape of a slice of pizza"),
    "star": ("the shape with five points", "the shape that twinkles", "the shape on top of a christmas tree"),
    "heart": ("the shape that means love", "the shape on a valentine card", "the shape of what beats in the chest"),
    "house": ("the building people live in", "the thing with a roof and a door", "the thing a family sleeps in"),
    "tree": ("the plant with a trunk", "the plant that birds nest in", "the plant that wood comes from"),
    "car": ("the vehicle that drives on roads", "the vehicle with four wheels", "the thing parked in a garage"),
    "boat": ("the vehicle that floats", "the vehicle with a sail", "the thing a sailor steers"),
    "sun": ("the thing that warms the earth", "the thing that shines by day", "the thing that rises in the morning"),
    "moon": ("the thing that circles the earth", "the thing wolves howl at", "the thing astronauts walked on"),
    "cloud": ("the thing that rain falls from", "the thing made of mist in the sky", "the thing that brings rain"),
    "flower": ("the plant with petals", "the plant that bees visit", "the plant that stands in a vase"),
    "fish": ("the animal that swims", "the animal with fins", "the animal that breathes under water"),
    "cat": ("the animal that purrs", "the animal that chases mice", "the animal with whiskers"),
    "cup": ("the thing you drink tea from", "the thing that holds coffee", "the thing that stands on a saucer"),
    "key": ("the thing that opens a lock", "the thing that starts an old car", "the thing a locked door needs"),
    "mushroom": ("the fungus with a cap", "the thing that grows in damp woods", "the thing some soups are picked for"),
}
"""Three noun phrases for every kind, each of which fits it alone."""

COLOUR_CLUES: dict[str, tuple[str, ...]] = {
    "red": ("a ripe tomato", "blood", "a fire engine", "a strawberry"),
    "orange": ("a carrot", "a pumpkin", "a basketball"),
    "yellow": ("a ripe banana", "a lemon", "a chick"),
    "green": ("grass", "a frog", "a cucumber"),
    "blue": ("a clear sky", "a blueberry", "a pair of jeans"),
    "purple": ("lavender", "a plum", "an eggplant"),
    "pink": ("a flamingo", "a pig", "bubble gum"),
    "white": ("milk", "a polar bear", "fresh snow"),
}
"""Things that have the colour, for "the colour of …"."""

BACKGROUND_CLUES: dict[str, tuple[tuple[str, str], ...]] = {
    "day": (
        ("when schools are open", "schools are open by day"),
        ("when shadows are short", "shadows are short by day"),
        ("when most people work", "most people work by day"),
    ),
    "night": (
        ("when owls are awake", "owls are awake at night"),
        ("when most people sleep", "most people sleep at night"),
        ("when bats fly", "bats fly at night"),
    ),
    "grass": (
        ("where cows graze", "cows graze on the grass"),
        ("where lambs play", "lambs play on the grass"),
        ("where football is played", "football is played on the grass"),
    ),
    "sea": (
        ("where whales live", "whales live at sea"),
        ("where waves roll", "waves roll at sea"),
        ("where pirates sail", "pirates sail at sea"),
    ),
    "sand": (
        ("where camels walk", "camels walk on the sand"),
        ("where dunes rise", "dunes rise on the sand"),
        ("where castles are built with a bucket", "castles are built with a bucket on the sand"),
    ),
    "snow": (
        ("where skiers race", "skiers race in the snow"),
        ("where sleds slide", "sleds slide in the snow"),
        ("where huskies run", "huskies run in the snow"),
    ),
}
"""(clue, the fact that resolves it) for every background."""

NUMBER_FACTS: dict[int, tuple[tuple[str, str], ...]] = {
    1: (("a unicorn has horns", "a unicorn has one horn"), ("a face has noses", "a face has one nose")),
    2: (
        ("a bicycle has wheels", "a bicycle has two wheels"),
        ("a bird has wings", "a bird has two wings"),
        ("a face has eyes", "a face has two eyes"),
    ),
    3: (
        ("a tricycle has wheels", "a tricycle has three wheels"),
        ("a traffic light has lamps", "a traffic light has three lamps"),
        ("a triangle has sides", "a triangle has three sides"),
    ),
    4: (
        ("a cat has legs", "a cat has four legs"),
        ("a car has wheels", "a car has four wheels"),
        ("a year has seasons", "a year has four seasons"),
    ),
    5: (("a hand has fingers", "a hand has five fingers"), ("a star has points", "a star has five points")),
    6: (("a beetle has legs", "a beetle has six legs"), ("a cube has faces", "a cube has six faces")),
}
"""(how it is asked after "as many as", the fact) for every number."""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ("fish", "cat"),
    "vehicle": ("car", "boat"),
    "plant": ("tree", "flower"),
}
"""Families of kinds, for counting across kinds."""

PARTS: dict[str, tuple[tuple[str, int], ...]] = {
    "cat": (("legs", 4), ("ears", 2), ("tails", 1)),
    "car": (("wheels", 4),),
    "star": (("points", 5),),
    "triangle": (("corners", 3),),
    "square": (("corners", 4),),
    "fish": (("eyes", 2),),
}
"""(part, how many one of the kind has), for counting parts of all things of a kind together."""
