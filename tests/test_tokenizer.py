"""The tokenizer: recorded ids, both forms on disk, decoding as a stream, training, damaged files."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.errors import CheckpointError, PromptError, SettingError, TokenizerError
from bagel_mot.tokenizer import SPECIAL_TOKENS, Tokenizer

PARTS = ("vocab.json", "merges.txt", "tokenizer_config.json")
CORPUS = ["a red car left of a blue boat, at night", "how many cars are there? 12", "don't stop\n\nnow"] * 20


def copy(source: Path, target: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        shutil.copy(source / name, target / name)
    return target


@pytest.fixture(params=["tokenizer.json", "parts"])
def recorded(request: pytest.FixtureRequest, golden: Any, tmp_path: Path) -> Tokenizer:
    names = PARTS if request.param == "parts" else ("tokenizer.json",)
    return Tokenizer.from_folder(copy(golden.checkpoint, tmp_path, names))


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(CORPUS, 300)


def test_recorded_ids(golden: Any, recorded: Tokenizer) -> None:
    (case,) = golden.cases("tokenize")
    assert [recorded.encode(text) for text in case["texts"]] == case["ids"]
    assert [recorded.decode(ids) for ids in case["ids"]] == case["texts"]
    assert case["special"] == {
        "bos_token_id": recorded.special.bos,
        "eos_token_id": recorded.special.eos,
        "start_of_image": recorded.special.start_of_image,
        "end_of_image": recorded.special.end_of_image,
    }
    assert recorded.vocab_size == 405


def test_recorded_texts(golden: Any, recorded: Tokenizer) -> None:
    """Generated texts, with bytes that are no valid UTF-8; the recorded text ends before the first end token."""
    checked = 0
    for case in golden.cases("interleave"):
        tokens = golden.expected.get(f"{case['name']}/tokens")
        if tokens is None:
            continue
        ids = tokens.tolist()[1:]
        ids = ids[: ids.index(recorded.special.eos)] if recorded.special.eos in ids else ids
        assert recorded.decode(ids) == case["text"]
        stream = recorded.detokenizer()
        assert "".join([*map(stream.add, ids), stream.finish()]) == case["text"]
        checked += 1
    assert checked >= 4


def test_special_tokens_written_out_are_parsed(recorded: Tokenizer) -> None:
    ids = recorded.encode("hi<|im_end|>x<|vision_start|>")
    assert ids == [*recorded.encode("hi"), recorded.special.eos, *recorded.encode("x"), recorded.special.start_of_image]
    assert recorded.decode(ids) == "hi<|im_end|>x<|vision_start|>"
    assert recorded.decode(ids, skip_special=True) == "hix"
    assert recorded.is_special(recorded.special.eos)
    assert not recorded.is_special(ids[0])


def random_text(rng: random.Random) -> str:
    alphabet = "ab Zé画\n\t 12'😀\u0301\u200d<|>" + "".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(5))
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))


def test_texts_come_back_normalised(trained: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng)
        assert trained.decode(trained.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("skip_special", [False, True])
def test_a_stream_of_random_ids_equals_the_whole(trained: Tokenizer, skip_special: bool) -> None:
    rng = random.Random(1)
    stream = trained.detokenizer(skip_special)
    for _ in range(300):
        ids = [rng.randrange(trained.vocab_size) for _ in range(rng.randrange(30))]
        pieces = [*map(stream.add, ids), stream.finish()]  # the same detokenizer again: finish() starts it afresh
        assert "".join(pieces) == trained.decode(ids, skip_special=skip_special)


def test_a_stream_holds_incomplete_characters_back(trained: Tokenizer) -> None:
    ids = trained.encode("画😀")
    assert len(ids) == 7  # bytes: the corpus has neither
    stream = trained.detokenizer()
    assert [stream.add(index) for index in ids] == ["", "", "画", "", "", "", "😀"]
    assert stream.finish() == ""
    assert [stream.add(ids[0]), stream.add(ids[1]), stream.finish()] == ["", "", "\ufffd"]


def test_token_bytes_cover_every_byte(trained: Tokenizer) -> None:
    single = {trained.token_bytes(index) for index in range(trained.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= single


def test_training_depends_on_the_texts_alone(trained: Tokenizer, tmp_path: Path) -> None:
    Tokenizer.train(iter(CORPUS[::-1]), 300).save(tmp_path / "again")
    trained.save(tmp_path / "first")
    for name in ("tokenizer.json", *PARTS):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_training_merges_and_puts_specials_last(trained: Tokenizer) -> None:
    assert trained.vocab_size == 300
    assert [trained.token_bytes(300 - 5 + i).decode() for i in range(5)] == list(SPECIAL_TOKENS)
    text = CORPUS[0]
    assert len(trained.encode(text)) < 0.6 * len(text)
    assert trained.decode([trained.special.bos, trained.special.end_of_image]) == "<|im_start|><|vision_end|>"


def test_training_needs_room_for_bytes() -> None:
    with pytest.raises(SettingError, match="at least 261"):
        Tokenizer.train(CORPUS, 260)


@pytest.mark.parametrize("form", ["tokenizer.json", "parts"])
def test_saved_and_read_again(trained: Tokenizer, tmp_path: Path, form: str) -> None:
    trained.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["tokenizer.json", *PARTS])  # no temporary files left
    for name in PARTS if form == "tokenizer.json" else ("tokenizer.json",):
        (tmp_path / name).unlink()
    again = Tokenizer.from_folder(tmp_path)
    rng = random.Random(2)
    for text in [*CORPUS[:3], "<|im_start|>", *(random_text(rng) for _ in range(50))]:
        assert again.encode(text) == trained.encode(text)
    assert (again.vocab_size, again.special) == (trained.vocab_size, trained.special)


def test_recorded_files_survive_a_round_trip(golden: Any, tmp_path: Path) -> None:
    Tokenizer.from_folder(golden.checkpoint).save(tmp_path)
    for name in ("vocab.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((golden.checkpoint / name).read_text())
    assert (tmp_path / "merges.txt").read_text().split() == (golden.checkpoint / "merges.txt").read_text().split()


def test_it_can_be_sent_to_worker_processes(trained: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(trained))
    assert again.encode(CORPUS[0]) == trained.encode(CORPUS[0])


def test_bad_texts_and_ids_are_refused(trained: Tokenizer) -> None:
    with pytest.raises(PromptError, match="int"):
        trained.encode(3)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="surrogate"):
        trained.encode("a\ud800")
    for index in (300, -1):
        with pytest.raises(TokenizerError, match="300 tokens"):
            trained.decode([index])


def test_a_folder_without_files_is_refused(golden: Any, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="lacks vocab.json, merges.txt, tokenizer_config.json"):
        Tokenizer.from_folder(tmp_path)
    copy(golden.checkpoint, tmp_path, PARTS[:2])
    with pytest.raises(CheckpointError, match="lacks tokenizer_config.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", "could not be read as JSON"),
        ("vocab.json", "[]", "JSON object"),
        ("vocab.json", '{"a": 0}', "do not fit together"),
        ("merges.txt", "#version: 0.2\nt h x\n", "line 2"),
        ("merges.txt", b"\xff\xfe", "cannot be read"),
        ("tokenizer_config.json", "{}", "added_tokens_decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"400": {"nonsense": 1}}}', "damaged"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"450": {"content": "<|im_end|>"}}}', "450"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"400": {"content": "<|im_end|>"}}}', "im_start"),
        ("tokenizer.json", "{}", "damaged"),
        ("tokenizer.json", b"\xff", "damaged"),
    ],
)
def test_damaged_files_are_named(golden: Any, tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    copy(golden.checkpoint, tmp_path, PARTS)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_other_kinds_of_tokenizer_are_refused(golden: Any, tmp_path: Path) -> None:
    content = json.loads((golden.checkpoint / "tokenizer.json").read_text())
    content["decoder"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="byte-level"):
        Tokenizer.from_folder(tmp_path)


def test_the_official_vocabulary(tmp_path: Path) -> None:
    """Runs where BAGEL_QWEN_TOKENIZER names a folder with the vocabulary of the official checkpoints."""
    folder = os.environ.get("BAGEL_QWEN_TOKENIZER")
    if not folder:
        pytest.skip("BAGEL_QWEN_TOKENIZER is not set")
    official = Tokenizer.from_folder(folder)
    official.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for tokenizer in (official, Tokenizer.from_folder(tmp_path)):
        assert tokenizer.encode("Hello world!") == [9707, 1879, 0]
        assert tokenizer.encode("你好") == [108386]
        assert (tokenizer.special.bos, tokenizer.special.eos) == (151644, 151645)
        assert (tokenizer.special.start_of_image, tokenizer.special.end_of_image) == (151652, 151653)
        assert tokenizer.vocab_size == 151665
