"""Draws the sheets of docs/settings.md with the embedded model: `python docs/make_pictures.py [NAME...]`.

Each sheet varies one or two settings and keeps the rest, the seed included. The same weights draw the same sheets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from bagel_mot import Bagel
from bagel_mot.worlds.mini.draw import draw as draw_scene
from bagel_mot.worlds.mini.scene import Scene, Thing

FOLDER = Path(__file__).parent / "images" / "settings"
PROMPT = "a red car below a yellow sun on the grass"
TWO_THINGS = "a blue boat and a pink flower"
INSTRUCTION = "make the car blue"
RIDDLES = ("draw as many white stars as a car has wheels", "draw the animal that purrs, in the colour of grass")
SEED = 0
_CELL, _PAD, _LINE = 112, 8, 18

Sheet = Callable[[Bagel], Image.Image]


def sheet(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str]) -> Image.Image:
    """Pictures in rows and columns with their labels, small ones enlarged; an empty label for a row takes no room."""
    font = ImageFont.load_default(size=13)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = max(round(pen.textlength(label, font)) for label in rows)
    left += _PAD if left else 0
    width = _PAD + left + len(columns) * (_CELL + _PAD)
    image = Image.new("RGB", (width, _PAD + _LINE + len(rows) * (_CELL + _PAD)), "white")
    pen = ImageDraw.Draw(image)
    for column, label in enumerate(columns):
        middle = _PAD + left + column * (_CELL + _PAD) + _CELL // 2
        pen.text((middle, _PAD), label, "black", font, anchor="ma")
    for row, (label, pictures) in enumerate(rows.items()):
        top = _PAD + _LINE + row * (_CELL + _PAD)
        pen.text((_PAD, top + _CELL // 2), label, "black", font, anchor="lm")
        for column, picture in enumerate(pictures):
            scale = _CELL / max(picture.size)
            shown = picture.resize(
                (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
            )
            place = _PAD + left + column * (_CELL + _PAD) + (_CELL - shown.width) // 2
            image.paste(shown, (place, top + (_CELL - shown.height) // 2))
    return image


def grid(
    draw: Callable[..., list[Image.Image]],
    rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
    given: Image.Image | None = None,
    **settings: Any,
) -> Image.Image:
    """One picture for each value of one setting with each value of another, drawn as one batch.

    Args:
        draw: takes settings, with a list of values for each request.
        rows, columns: name of a setting, and its values.
        given: a picture to show above.
        **settings: the same for all.
    """
    pairs = [(row, column) for row in rows[1] for column in columns[1]]
    varied = {rows[0]: [row for row, _ in pairs], columns[0]: [column for _, column in pairs]}
    pictures = draw(**{"seed": SEED, **settings, **varied})
    wide = len(columns[1])
    parts = [pictures[start : start + wide] for start in range(0, len(pictures), wide)]
    shown = {} if given is None else {"given": [given]}
    labels = [f"{rows[0]} {_text(value)}" for value in rows[1]]
    return sheet(
        {**shown, **dict(zip(labels, parts, strict=True))}, [f"{_short(columns[0])}{_text(v)}" for v in columns[1]]
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return " to ".join(f"{end:g}" for end in value)
    return value if isinstance(value, str) else f"{value:g}"


def _short(name: str) -> str:
    plain = {"cfg_interval": "", "seed": "seed ", "num_timesteps": "", "timestep_shift": "", "eta": "eta "}
    return plain.get(name, f"{name[4:]} ")


def _drawing(bagel: Bagel) -> Callable[..., list[Image.Image]]:
    return lambda **settings: bagel.generate(PROMPT, **settings)


def _edited(
    bagel: Bagel, rows: tuple[str, Sequence[Any]], columns: tuple[str, Sequence[Any]], **settings: Any
) -> Image.Image:
    """A sheet of edits of a picture that code has drawn, which stands above them."""
    things = Thing("sun", "yellow", "large", "top left"), Thing("car", "red", "large", "bottom right")
    given = draw_scene(Scene("grass", things))
    return grid(lambda **values: bagel.edit(given, INSTRUCTION, **values), rows, columns, given, **settings)


def _think(bagel: Bagel) -> Image.Image:
    rows = {}
    for riddle in RIDDLES:
        results = bagel.generate(riddle, seed=SEED, think=[False, True], max_think_tokens=96, return_result=True)
        rows[riddle] = [result.image for result in results]
    return sheet(rows, ["think false", "think true"])


def _size(bagel: Bagel) -> Image.Image:
    sizes = [(64, 64), (64, 48), (48, 64), (64, 32)]
    pictures = bagel.generate(PROMPT, size=sizes, seed=SEED)
    return sheet({"": pictures}, [f"{width}x{height}" for width, height in sizes])


SHEETS: dict[str, Sheet] = {
    "cfg_text_scale": lambda bagel: grid(
        _drawing(bagel),
        ("cfg_text_scale", [1.0, 2.0, 4.0, 8.0, 16.0]),
        ("cfg_interval", [(0.0, 1.0), (0.4, 1.0), (0.7, 1.0), (0.0, 0.7)]),
    ),
    "cfg_image_scale": lambda bagel: _edited(
        bagel, ("cfg_image_scale", [1.0, 1.5, 2.0, 4.0]), ("cfg_text_scale", [2.0, 4.0, 8.0])
    ),
    "cfg_renorm": lambda bagel: _edited(
        bagel,
        ("cfg_renorm_type", ["global", "channel", "text_channel"]),
        ("cfg_renorm_min", [0.0, 0.5, 1.0]),
        cfg_text_scale=8.0,
    ),
    "num_timesteps": lambda bagel: grid(
        _drawing(bagel), ("enable_taylorseer", [False, True]), ("num_timesteps", [3, 5, 10, 15, 25, 50])
    ),
    "timestep_shift": lambda bagel: grid(
        _drawing(bagel), ("seed", [SEED, SEED + 1, SEED + 2]), ("timestep_shift", [0.3, 1.0, 3.0, 6.0, 12.0])
    ),
    "eta": lambda bagel: grid(
        lambda **settings: bagel.generate(TWO_THINGS, **settings),
        ("seed", [SEED, SEED + 1, SEED + 2, SEED + 3]),
        ("eta", [0.0, 0.25, 0.5, 0.75, 1.0]),
    ),
    "size": _size,
    "think": _think,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the sheets named, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all of {', '.join(SHEETS)}")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in SHEETS]
    if unknown:
        parser.error(f"there is no sheet {unknown[0]!r}: there are {', '.join(SHEETS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    bagel = Bagel.from_pretrained("mini", device="cpu", precision="float32")
    for name in options.names or SHEETS:
        path = options.output / f"{name}.png"
        SHEETS[name](bagel).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
