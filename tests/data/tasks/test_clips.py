"""Clips: frames of video files and of folders, in conversations and to be drawn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bagel_mot import video
from bagel_mot.data.documents import OPENERS, Document, FramesPart, ImagePart, TextPart, opened
from bagel_mot.data.draws import RandomDraws, all_outcomes
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.sources import read_source_config
from bagel_mot.data.sources.rows import RowsConfig
from bagel_mot.data.tasks.chat import Conversation
from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.data.tasks.video import VideoGeneration, group_bounds
from bagel_mot.errors import ImageError
from bagel_mot.video import read_frames, video_info

av = pytest.importorskip("av")
UPRIGHT = OPENERS["upright"]


def write_video(path: Path, frames: int, rate: int = 8) -> Path:
    """A video whose frame k is gray of level 10·k, with a key frame for every five."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.gop_size = 5
        for number in range(frames):
            image = Image.new("RGB", (48, 32), (10 * number,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


def levels(images: Sequence[Any]) -> list[int]:
    """The frame number of each image, by its gray level."""
    return [round(float(np.asarray(opened(image, UPRIGHT)).mean()) / 10) for image in images]


def frames_folder(path: Path, numbers: Sequence[int]) -> Path:
    path.mkdir()
    for number in numbers:
        Image.new("RGB", (20, 10), (10 * number,) * 3).save(path / f"shot_{number}.png")
    (path / "notes.txt").write_text("no frame", encoding="utf-8")
    return path


def test_frames_of_a_video_are_taken_by_number(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 20)
    assert (video_info(path).frames, video_info(path).fps) == (20, 8.0)
    assert levels(read_frames(path, [0, 7, 7, 19])) == [0, 7, 7, 19]
    assert levels(read_frames(path, range(20))) == list(range(20))
    assert all(levels(read_frames(path, [n, m])) == [n, m] for n in range(0, 20, 3) for m in (n, 19, 4))
    assert levels(read_frames(path, [18, 25])) == [18, 19]  # one that is not there is the last that is


def test_frames_far_into_a_video_do_not_need_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", 25)
    decoded: list[Any] = []
    decode = video._decoded

    def counted(container: Any, stream: Any) -> Iterator[Any]:
        for frame in decode(container, stream):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video, "_decoded", counted)
    assert levels(read_frames(path, [22])) == [22]
    assert len(decoded) <= 5


@pytest.mark.parametrize("content", [b"", b"this is no video", None])
def test_a_broken_video_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "v.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"the video .*v\.mp4 cannot be read"):
        video_info(path)


def parts(document: Document) -> list[str]:
    return [part.text if isinstance(part, TextPart) else "image" for part in document]


def test_a_video_in_a_conversation_becomes_images_where_its_mark_is(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 12)
    turns = [{"from": "human", "value": "Look: <video> what is it?"}, {"from": "gpt", "value": "gray"}]
    row = {"video": "v.mp4", "conversations": turns}
    mapper = Conversation(folder=tmp_path, sampler=FrameSampler(3, 3, "middle"))
    document = mapper(row, RandomDraws(random.Random(0)))
    assert parts(document) == ["Look:", "image", "image", "image", "what is it?", "gray"]
    images = [part for part in document if isinstance(part, ImagePart)]
    assert levels([part.image for part in images]) == [1, 5, 9]
    assert all((part.vit, part.vae, part.share, part.droppable) == (True, False, 3, False) for part in images)
    for broken, reason in [
        (Conversation(folder=tmp_path), "does not say how many frames"),
        (Conversation(folder=tmp_path / "other", sampler=mapper.sampler), "cannot be read"),
    ]:
        with pytest.raises(SkipRow, match=reason):
            broken(row, RandomDraws(random.Random(0)))
    with pytest.raises(SkipRow, match="no human turn has <video>"):
        mapper({**row, "conversations": turns[1:]}, RandomDraws(random.Random(0)))
    by_second = Conversation(folder=tmp_path, sampler=FrameSampler(-1, sample="fps2"))
    images = [part for part in by_second(row, RandomDraws(random.Random(0))) if isinstance(part, ImagePart)]
    assert levels([part.image for part in images]) == [2, 6, 10]


def test_a_folder_gives_its_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frames_folder(tmp_path / "clip", [3, 20, 1])
    row = {"video": "clip/", "conversations": [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "a"}]}
    mapper = Conversation(folder=tmp_path, sampler=FrameSampler(5, 4))
    document = mapper(row, RandomDraws(random.Random(0)))
    assert levels([part.image for part in document if isinstance(part, ImagePart)]) == [1, 3, 20]
    (tmp_path / "empty").mkdir()
    for name, sampler, reason in [
        ("empty/", mapper.sampler, "has no images in it"),
        ("missing/", mapper.sampler, "cannot be read"),
        ("clip/", FrameSampler(4, sample="fps1"), "has no frame rate"),
    ]:
        with pytest.raises(SkipRow, match=reason):
            Conversation(folder=tmp_path, sampler=sampler)({**row, "video": name}, RandomDraws(random.Random(0)))


def test_a_sampler_refuses_what_it_does_not_know() -> None:
    for arguments, said in [
        ((4, 4, "random"), "there are rand, middle and fpsX"),
        ((4, 5, "rand"), "min_num_frames must be at least 1 and max_num_frames not less"),
        ((-1, 1, "middle"), "max_num_frames -1"),
        ((4, 4, "fps0"), "there are rand, middle and fpsX"),
    ]:
        with pytest.raises(ValueError, match=said):
            FrameSampler(*arguments)


def generated(mapper: VideoGeneration, row: Any, seed: int = 0) -> list[Any]:
    document = mapper(row, RandomDraws(random.Random(seed)))
    return [
        part.text
        if isinstance(part, TextPart)
        else (part.numbers, part.target, part.vae, part.following, len(part.frames))  # type: ignore[union-attr]
        for part in document
    ]


def test_all_frames_of_a_clip_are_drawn_together(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 9)
    mapper = VideoGeneration(sampler=FrameSampler(3, 3, "middle"), folder=tmp_path)
    row = {"video": "v.mp4", "caption": "it brightens"}
    assert generated(mapper, row) == ["it brightens", ((1, 4, 7), True, False, None, 3)]
    given = VideoGeneration(sampler=mapper.sampler, folder=tmp_path, given=1)
    assert generated(given, row)[1:] == [((1,), False, True, 4, 1), ((4, 7), True, False, None, 2)]
    too_many = VideoGeneration(sampler=FrameSampler(12, 12), folder=tmp_path)  # the last frame is not repeated
    assert generated(too_many, row)[1][0] == tuple(range(9))
    with pytest.raises(SkipRow, match="has 3 frames and 3 of them are given"):
        generated(VideoGeneration(sampler=mapper.sampler, folder=tmp_path, given=3), row)


def test_groups_of_frames_are_noised_together_and_later_ones_see_them_clean() -> None:
    row = {"video": [b"0", b"1", b"2"], "caption": "c"}
    mapper = VideoGeneration(groups="random")
    outcomes = all_outcomes(lambda draws: tuple(p for p in mapper(row, draws) if isinstance(p, FramesPart)))
    assert [probability for probability, _ in outcomes] == [Fraction(1, 4)] * 4
    bounds = {tuple(part.numbers for part in groups) for _, groups in outcomes}
    assert bounds == {((0, 1, 2),), ((0,), (1, 2)), ((0, 1), (2,)), ((0,), (1,), (2,))}
    for _, groups in outcomes:
        assert all(part.target and part.droppable for part in groups)
        assert [part.vae for part in groups] == [True] * (len(groups) - 1) + [False]
        assert [part.following for part in groups[:-1]] == [part.numbers[0] for part in groups[1:]]
    assert [b for _, b in all_outcomes(lambda draws: group_bounds(1, draws))] == [[0, 1]]


def test_a_text_says_what_changes_before_each_frame() -> None:
    row = {"video": [b"0", b"1", b"2"], "caption": "c", "changes": ["up", "down"]}
    assert generated(VideoGeneration(changes="changes", given=1), row) == [
        "c",
        ((0,), False, True, 1, 1),
        "up",
        ((1,), True, True, 2, 1),
        "down",
        ((2,), True, False, None, 1),
    ]
    with pytest.raises(SkipRow, match="changes has 1 texts for 3 frames"):
        generated(VideoGeneration(changes="changes"), {**row, "changes": ["up"]})


def test_rows_of_files_have_texts_of_changes(tmp_path: Path) -> None:
    frames_folder(tmp_path / "clip", [1, 2])
    row = {"video": ["clip/shot_1.png", "clip/shot_2.png"], "caption": "c", "changes": ["up"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    section = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "task": "video", "options": {"given": 1}}
    config = read_source_config(section)
    assert isinstance(config, RowsConfig)
    dataset = config.dataset()
    document = dataset.document(next(dataset.reader.read(0)), RandomDraws(random.Random(0)))
    assert [part.text if isinstance(part, TextPart) else part.numbers for part in document] == ["c", (0,), "up", (1,)]  # type: ignore[union-attr]
    assert levels([frame for part in document if isinstance(part, FramesPart) for frame in part.frames]) == [1, 2]
