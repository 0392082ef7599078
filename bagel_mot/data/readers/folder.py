"""Plain folders: images with captions, pairs of images with instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from bagel_mot.data.readers.base import BrokenRow, Reader, Row, Unit
from bagel_mot.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jxl", ".heic", ".heif", ".avif")
"""Endings of the names of image files, in small letters."""


def image_files(folder: Path) -> list[Path]:
    """All image files in a folder and the folders in it, in the order of their paths; hidden ones are left out.

    Raises:
        DataError: the folder is missing.
    """
    if not folder.is_dir():
        is_file = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {is_file}; a folder with images is expected")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


class FolderReader(Reader):
    """One row a name; the folder is the only unit. Rows hold paths and texts: images are not opened here.

    Attributes:
        folder: the folder.
    """

    random_access = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getstate__(self) -> Mapping[str, Path]:
        return {"folder": self.folder}

    @cached_property
    def rows(self) -> list[Row]:
        """All rows.

        Raises:
            DataError: the folder is missing, or has no image.
        """
        raise NotImplementedError

    @cached_property
    def names(self) -> list[Path]:
        """The file that each row is named by."""
        raise NotImplementedError

    def units(self) -> Sequence[Unit]:
        return [Unit(str(self.folder), len(self.names))]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        return iter(self.rows[start:])

    def place(self, unit: int, row: int) -> str:
        return str(self.names[row])


class CaptionedImages(FolderReader):
    """Images, each with its captions in the text file of the same name, one a line, of which one is drawn each time.

    Rows have `image`, a path, and `captions`, a list of texts.
    """

    @cached_property
    def names(self) -> list[Path]:
        files = image_files(self.folder)
        if not files:
            raise DataError(
                f"{self.folder} has no image: put images there ({', '.join(IMAGE_SUFFIXES[:4])}, …), each with a text "
                "file of the same name that holds its caption"
            )
        return files

    @cached_property
    def rows(self) -> list[Row]:
        return [_captioned(file) for file in self.names]


def _captioned(file: Path) -> Row:
    lines = read_lines(file.with_suffix(".txt"))
    return lines if isinstance(lines, BrokenRow) else {"image": file, "captions": lines}


class ImagePairs(FolderReader):
    """Pairs of images before and after an edit, with the wordings of its instruction, one a line of a text file.

    Either `NAME.before.png`, `NAME.after.png` and `NAME.txt` lie side by side, or `before/NAME.png`,
    `after/NAME.png` and `NAME.txt`, which may lie in a folder `instructions`. Images may be of any type.

    Rows have `before` and `after`, paths, and `instruction`, a list of texts.
    """

    @cached_property
    def _pairs(self) -> dict[Path, Path]:
        """Each image before an edit, and the name of its pair: a path without the word and without a suffix."""
        found: dict[Path, Path] = {}
        for file in image_files(self.folder):
            if file.stem.endswith(".before"):
                found[file] = file.with_name(file.stem.removesuffix(".before"))
            elif "before" in file.relative_to(self.folder).parts[:-1]:
                found[file] = file.with_suffix("")
        return found

    @cached_property
    def names(self) -> list[Path]:
        if not self._pairs:
            raise DataError(
                f"{self.folder} has no pair of images: NAME.before.png, NAME.after.png and NAME.txt are expected, or "
                "before/NAME.png, after/NAME.png and NAME.txt"
            )
        return list(self._pairs)

    @cached_property
    def rows(self) -> list[Row]:
        after: dict[Path, Path] = {}
        for file in image_files(self.folder):
            after.setdefault(file.with_suffix(""), file)
        return [self._pair(before, name, after) for before, name in self._pairs.items()]

    def _pair(self, before: Path, name: Path, files: Mapping[Path, Path]) -> Row:
        if before.stem.endswith(".before"):
            wanted, texts = [name.with_name(name.name + ".after")], [name.with_name(name.name + ".txt")]
        else:
            parts = before.relative_to(self.folder).parts
            at = len(parts) - 2 - parts[:-1][::-1].index("before")
            root, inside = self.folder.joinpath(*parts[:at]), Path(*parts[at + 1 : -1], name.name)
            wanted = [root / "after" / inside]
            texts = [folder / f"{inside}.txt" for folder in (root, root / "instructions", root / "before")]
        after = next((files[path] for path in wanted if path in files), None)
        if after is None:
            return BrokenRow("no image after the edit", f"there is no image {wanted[0]}.* for {before.name}")
        lines = read_lines(next((text for text in texts if text.exists()), texts[0]))
        return lines if isinstance(lines, BrokenRow) else {"before": before, "after": after, "instruction": lines}


def read_lines(file: Path) -> list[str] | BrokenRow:
    """The lines of a text file that are not blank, stripped; or why there are none."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        return BrokenRow("no text file", f"there is no {file.name}, which should hold the text")
    except (OSError, UnicodeDecodeError) as error:
        return BrokenRow("a text file cannot be read", f"{file.name} cannot be read as UTF-8: {error}")
    return [line for line in lines if line] or BrokenRow("an empty text file", f"{file.name} holds no text")
