"""Miniatures of public data sets, made by code: the layout of each on disk with a few small images."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def image_bytes(level: int = 0, form: str = "PNG") -> bytes:
    """A gray image of 16 × 16 pixels, all of one level."""
    Image.new("RGB", (16, 16), (level, level, level)).save(out := io.BytesIO(), form)
    return out.getvalue()


def image_file(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(level))
    return path


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


def split_tar(path: Path, members: Mapping[str, bytes], parts: int = 3) -> list[Path]:
    """A tar in parts, PATH.split.000 and so on."""
    content = tar(path, members).read_bytes()
    path.unlink()
    size = len(content) // parts + 1
    files = [path.with_name(f"{path.name}.split.{number:03}") for number in range(parts)]
    for number, file in enumerate(files):
        file.write_bytes(content[number * size : (number + 1) * size])
    return files


def zipped(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def json_list(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def struct(level: int = 0) -> dict[str, Any]:
    """An image as Parquet files of the hub hold it."""
    return {"bytes": image_bytes(level), "path": f"{level}.png"}


def _text_tars(folder: Path) -> None:
    for name in ("dalle3", "geneval_train"):
        members = {
            f"{name}_{n}.{end}": c for n in range(2) for end, c in (("jpg", image_bytes(n, "JPEG")), ("txt", b"a cat"))
        }
        tar(folder / f"{name}.tar", members)


def _json_tars(folder: Path, place: str, content: Mapping[str, Any]) -> None:
    members = {"00.jpg": image_bytes(1, "JPEG"), "00.json": json.dumps(content).encode()}
    tar(folder / place, members)


def _sharegpt(folder: Path) -> None:
    tar(folder / "t2i_0.tar", {"text_to_image/0.png": image_bytes(1)})
    tar(folder / "edit_0.tar", {"text_and_image/0.png": image_bytes(2), "text_and_image/1.png": image_bytes(3)})
    made = {"input_prompt": "a cat", "output_image": "text_to_image/0.png", "output_image_resolution": [16, 16]}
    json_list(folder / "text_to_image.json", [made])
    edited = {
        "input_image": ["text_and_image/0.png"],
        "output_image": "text_and_image/1.png",
        "input_image_resolution": [[16, 16]],
    }
    json_list(folder / "text_and_image_to_image.json", [{**made, **edited}])


def _jsonl_tar(folder: Path, **row: Any) -> None:
    tar(folder / "images" / "part.tar", {f"images/{n}.png": image_bytes(n) for n in range(3)})
    jsonl(folder / "rows.jsonl", [row])


def _pairs(
    folder: Path, before: str, after: str, instruction: str, words: Any = "make it dark", split: str = "train"
) -> None:
    row = {before: struct(1), after: struct(2), instruction: words, "other": 1}
    parquet(folder / "data" / f"{split}-00000-of-00001.parquet", [row, row])


def _magicbrush(folder: Path) -> None:
    turns = [("1", 1), ("1", 2), ("1", 3), ("2", 1)]
    rows = [
        {
            "img_id": name, "turn_index": turn, "source_img": struct(10 * int(name) + turn - 1), "mask_img": struct(),
            "instruction": f"step {turn} of {name}", "target_img": struct(10 * int(name) + turn),
        }
        for name, turn in turns
    ]  # fmt: skip
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows)


def _seed(folder: Path) -> None:
    root = folder / "multi_turn_editing"
    names = [f"images/set/{n}.png" for n in range(3)]
    for number, name in enumerate(names):
        image_file(root / name, number)
    inner = [name.removeprefix("images/") for name in names]
    row = {"source_image": inner[0]}
    for turn in (1, 2):
        row |= {
            f"edit_image_{turn}": inner[turn],
            f"instruction_{turn}": f"step {turn}",
            f"inverse_instruction_{turn}": f"undo {turn}",
        }
    jsonl(root / "annotations" / "split_0.jsonl", [row])


def _imgedit(folder: Path) -> None:
    split_tar(folder / "Singleturn" / "a.tar", {f"set/{n}.png": image_bytes(n) for n in range(2)})
    row = {"input_images": ["set/0.png"], "output_images": ["set/1.png"], "prompt": "make it dark"}
    parquet(folder / "Parquet" / "a_part1.parquet", [row])


def _imgedit_turns(folder: Path) -> None:
    split_tar(folder / "Multiturn" / "m.tar", {f"set/{n}.png": image_bytes(n) for n in range(3)})
    turns = [
        {"input_images": [f"set/{n}.png"], "output_images": [f"set/{n + 1}.png"], "prompt": f"step {n}"}
        for n in range(2)
    ]
    parquet(folder / "Parquet" / "a_multi.parquet", [{"data": turns}])


def _gpt_image_edit(folder: Path) -> None:
    for name in ("input", "output"):
        image_file(folder / name / "0.png")
    row = {
        "id": "0", "dataset_source": "omniedit", "task": "swap", "input": "input/0.png", "output": "output/0.png",
        "instruction": "make it dark", "instruction_type": "original", "input_description": "a cat",
    }  # fmt: skip
    json_list(folder / "omniedit_gpt.json", [row])


def _pico(folder: Path) -> None:
    image_file(folder / "openimages" / "0.jpg")
    image_file(folder / "images" / "positive-edit" / "1.png")
    row = {
        "open_image_input_url": "https://example.org/0.jpg", "local_input_image": "openimages/0.jpg",
        "text": "make it dark",
        "summarized_text": "darken", "output_image": "images/positive-edit/1.png", "edit_type": "light",
    }  # fmt: skip
    jsonl(folder / "sft.jsonl", [row])


def _pico_turns(folder: Path) -> None:
    files = [{"id": "original_input_image", "url": "0.png"}, {"id": "a", "url": "1.png"}]
    for file in files:
        image_file(folder / file["url"])
    jsonl(folder / "multi.jsonl", [{"files": files, "turns": [{"text": "make it dark"}]}])


def _vqva(folder: Path) -> None:
    qas = json.dumps({"q": "what comes next?", "a": "night"})
    parquet(
        folder / "world" / "train-0.parquet", [{"images": [struct(1), struct(2)], "qas": qas, "think": "It gets dark."}]
    )


def _zebra(folder: Path) -> None:
    row = {
        "Question": "Where? <image_start>[problem_image_1]<image_end>",
        "Text Reasoning Trace": "Look. <image_start>[reasoning_image_1]<image_end> There.",
        "Final Answer": "left", "problem_image_1": struct(1), "reasoning_image_1": struct(2), "reasoning_image_2": None,
    }  # fmt: skip
    parquet(folder / "Chess" / "train-0.parquet", [row, {**row, "reasoning_image_2": struct(3)}])


def _thinkmorph(folder: Path) -> None:
    row = {
        "image_list": [image_bytes(1), image_bytes(2)],
        "instruction_list": [["put it together"]],
        "output_text_list": ["The sky goes up.", "Done."],
    }
    parquet(folder / "jigsaw.parquet", [row])


def _llava(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    rows = [
        {"id": "1", "image": struct(1), "conversations": turns, "data_source": "x"},
        {"id": "2", "image": None, "conversations": [{"from": "human", "value": "Who?"}, turns[1]], "data_source": "x"},
    ]
    parquet(folder / "subset" / "train-0.parquet", rows)


def _mmdu(folder: Path) -> None:
    zipped(folder / "mmdu-45k_pics.zip", {f"mmdu-45k_pics/{n}.png": image_bytes(n) for n in range(2)})
    turns = [
        {"from": "user", "value": "<ImageHere><ImageHere>What differs?"},
        {"from": "assistant", "value": "The light."},
    ]
    json_list(folder / "mmdu-45k.json", [{"id": "a", "image": ["0.png", "1.png"], "conversations": turns}])


def _mammoth(folder: Path) -> None:
    image_file(folder / "images" / "0.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    json_list(folder / "part.json", [{"image": "images/0.png", "conversations": turns}])


def _messages(folder: Path) -> None:
    content = [{"type": "text", "text": "draw a cat"}]
    answer = [{"type": "image", "text": None}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    parquet(folder / "train-0.parquet", [{"messages": messages, "images": [struct(1)]}])


MINIATURES: dict[str, Callable[[Path], None]] = {
    "blip3o-60k": _text_tars,
    "blip3o-long-caption": _text_tars,
    "blip3o-short-caption": _text_tars,
    "text-to-image-2m": lambda f: _json_tars(f, "data_512_2M/data_000000.tar", {"prompt": "a cat"}),
    "dalle3-1m": lambda f: _json_tars(
        f, "data/data-000000.tar", {"short_caption": "a cat", "long_caption": "a gray cat"}
    ),
    "sharegpt-4o-image": _sharegpt,
    "sharegpt-4o-image-edit": _sharegpt,
    "echo-4o-image": lambda f: _jsonl_tar(f, instruction="a cat", output_image="images/0.png"),
    "echo-4o-image-edit": lambda f: _jsonl_tar(
        f, instruction="both", output_image="images/2.png", input_images=["images/0.png", "images/1.png"]
    ),
    "opengpt-4o-image": lambda f: _jsonl_tar(f, input_prompt="a cat", output_image="images/0.png"),
    "opengpt-4o-image-edit": lambda f: _jsonl_tar(
        f, input_prompt="dark", output_image="images/1.png", input_image="images/0.png"
    ),
    "omniedit": lambda f: _pairs(f, "src_img", "edited_img", "edited_prompt_list", ["make it dark", "darken"]),
    "ultraedit": lambda f: _pairs(f, "source_image", "edited_image", "edit_prompt", split="FreeForm"),
    "ultraedit-region": lambda f: _pairs(f, "source_image", "edited_image", "edit_prompt", split="RegionBase"),
    "magicbrush": _magicbrush,
    "seed-data-edit": _seed,
    "imgedit": _imgedit,
    "imgedit-multi-turn": _imgedit_turns,
    "gpt-image-edit": _gpt_image_edit,
    "pico-banana": _pico,
    "pico-banana-multi-turn": _pico_turns,
    "scaleedit": lambda f: _pairs(f, "source_image", "edited_image", "edit_instruction"),
    "nhr-edit": lambda f: _pairs(f, "source_image", "edited_image", "edit_prompt"),
    "x2i": lambda f: _jsonl_tar(
        f, instruction="both", output_image="images/2.png", input_images=["images/0.png", "images/1.png"]
    ),
    "vqva-world": _vqva,
    "zebra-cot": _zebra,
    "thinkmorph": _thinkmorph,
    "llava-onevision": _llava,
    "llava-next": _llava,
    "mmdu": _mmdu,
    "mammoth-vl": _mammoth,
    "bagel-example-lmms": _messages,
}
"""Functions that write a miniature of a public data set into a folder, by the data set's name."""
