"""Files are written whole; links, pipes and devices stay what they are."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from PIL import Image

from bagel.files import check_writable, make_writable_folder, write_atomically, write_text
from bagel.inference.result import save_image

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")


def read_along(pipe: Path) -> tuple[threading.Thread, list[bytes]]:
    """Reads a pipe to its end beside the test."""
    heard: list[bytes] = []
    thread = threading.Thread(target=lambda: heard.append(pipe.read_bytes()), daemon=True)
    thread.start()
    return thread, heard


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text"
    write_text(path, "one\n")
    write_text(path, "two\n")
    assert path.read_bytes() == b"two\n"
    assert list(path.parent.iterdir()) == [path]


@posix
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "data", tmp_path / "link.json"
    link.symlink_to(target)
    write_text(link, "new")  # also where there is no target yet
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    write_text(link, "newer")
    assert (link.is_symlink(), target.read_text()) == (True, "newer")
    assert [p.name for p in target.parent.iterdir()] == ["data"]


@posix
def test_a_pipe_stays_a_pipe_and_carries_the_text(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    thread, heard = read_along(pipe)
    write_text(pipe, "through")
    thread.join(20)
    assert heard == [b"through"]
    thread, heard = read_along(pipe)
    save_image(Image.new("RGB", (3, 2)), pipe)
    thread.join(20)
    assert heard[0].startswith(b"\x89PNG")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@posix
def test_a_link_to_a_device_stays(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    write_text(link, "gone")
    assert link.is_symlink()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@posix
def test_a_failed_write_leaves_a_pipe_untouched(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):  # nobody reads: opening the pipe would wait for ever
        write_atomically(pipe, fail)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_text(tmp_path, "text")
    with pytest.raises(OSError, match="folder"):
        check_writable(tmp_path)


def test_checking_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "x.png")
    assert list((tmp_path / "a").iterdir()) == []
    make_writable_folder(tmp_path / "b" / "c")
    assert list((tmp_path / "b" / "c").iterdir()) == []
    (tmp_path / "file").write_text("")
    for check, place in (
        (check_writable, "file/x.png"),
        (make_writable_folder, "file"),
        (make_writable_folder, "file/x"),
    ):
        with pytest.raises(OSError):
            check(tmp_path / place)


@posix
def test_checking_a_pipe_does_not_open_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    check_writable(tmp_path / "pipe.png")
