"""Files are written whole; links, pipes and devices stay what they are."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from bagel_mot.errors import CheckpointError, DataError, SettingError
from bagel_mot.files import (
    check_free_space,
    check_writable,
    make_writable_folder,
    parse_size,
    read_json,
    user_path,
    whole_folder,
    write_atomically,
    write_text,
)
from bagel_mot.inference.result import save_image

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


def test_a_folder_becomes_whole_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "new"
    with whole_folder(folder) as staging:
        (staging / "a").write_text("1")
        (staging / "inner").mkdir()
        assert not folder.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "inner"]
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_folder_stays_the_same_one(tmp_path: Path) -> None:
    """It may be where a disk is mounted, and what is beside it elsewhere."""
    number = tmp_path.stat().st_ino
    with whole_folder(tmp_path) as staging:
        (staging / "a").write_text("1")
        assert [path.name for path in tmp_path.iterdir()] == [".partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert tmp_path.stat().st_ino == number


def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        with whole_folder(folder) as staging:
            (staging / "a").write_text("1")
            raise KeyboardInterrupt

    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder, message in ((tmp_path, "is not empty"), (tmp_path / "file", "is a file")):
        with pytest.raises(FileExistsError, match=message), whole_folder(folder):
            raise AssertionError
    assert (tmp_path / "file").read_text() == "x"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, staging in (("x", ".x.partial"), ("empty", "empty/.partial")):
        left = tmp_path / staging / "sub"
        left.mkdir(parents=True)
        (left / "half").write_text("half")
        with whole_folder(tmp_path / folder) as place:
            (place / "whole").write_text("whole")
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["whole"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "x"]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_two_processes_do_not_fill_one_folder(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "x") as staging:
        (staging / "a").write_text("1")
        with pytest.raises(BlockingIOError, match="another process"), whole_folder(tmp_path / "x"):
            raise AssertionError
    assert (tmp_path / "x" / "a").read_text() == "1"


def test_room_on_the_disk(tmp_path: Path) -> None:
    check_free_space(tmp_path / "missing" / "deeper", 1)
    with pytest.raises(OSError, match=r"1e\+09 GB are needed in .*missing, but only"):
        check_free_space(tmp_path / "missing", 10**18)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500 MB", 5 * 10**8),
        ("1.5kB", 1500),
        ("2GiB", 2**31),
        ("7", 7),
        ("3b", 3),
        ("1t", 10**12),
        ("4Mi", 2**22),
    ],
)
def test_sizes_as_they_are_typed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-5GB", "5XB", "0", "1e9", "5 GB GB", "0.1", "5ib", "nan", "9" * 400 + "GB", "9999999TB"]
)
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(SettingError, match="is not a size"):
        parse_size(text)


# --------------------------------------------------------------------------------------------- paths and files of users


@pytest.mark.skipif(sys.platform == "win32", reason="homes are found by other variables there")
def test_the_path_of_a_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert user_path("~") == user_path("~/") == tmp_path
    assert user_path(Path("~/a b/c.png")) == tmp_path / "a b" / "c.png"
    assert user_path("a/~/b") == Path("a/~/b")
    assert user_path("./~/b") == Path("~/b")
    (tmp_path / "~backup.png").write_bytes(b"1")
    assert user_path("~backup.png") == Path("~backup.png")
    (tmp_path / "~").mkdir()
    assert user_path("~/x") == tmp_path / "x"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "the path is empty"),
        ("~nobody7/x", "'~nobody7/x' begins with ~nobody7, which is nobody's home here"),
        ("x" * 5000, "'x{60}…' cannot be a path: it is too long"),
        ("x" * 300 + "/a", "it is too long"),
        ("a\0b", "cannot be a path: it holds a null character"),
    ],
)
def test_what_cannot_be_a_path_is_refused_in_a_sentence(path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        user_path(path, DataError)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 29214\n"


def test_files_that_are_something_else_are_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content, message in (
        (POINTER, "is a Git LFS pointer, not the file itself: run git lfs pull, or bagel download"),
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"\xef\xbb\xbf<HTML>", "is a web page"),
        (b"[]", "holds a list; a JSON object is expected"),
        (b"{", "could not be read as JSON"),
        (b"\xff", "could not be read as JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"config\.json {message}"):
            read_json(path, CheckpointError)
    with pytest.raises(CheckpointError, match="is a folder: a file is expected"):
        read_json(tmp_path, CheckpointError)
    with pytest.raises(CheckpointError, match="could not be read as JSON"):
        read_json(tmp_path / "none.json", CheckpointError)
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa4"}')
    assert read_json(path, CheckpointError) == {"a": "ä"}
