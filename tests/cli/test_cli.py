"""The `bagel` command, through typer's runner and as a process: results, messages, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from PIL import Image
from typer.testing import CliRunner, Result

from bagel_mot import Bagel
from bagel_mot.checkpoint.convert import STORED
from bagel_mot.checkpoint.precision import LOSSY, QUANTISED
from bagel_mot.cli import app
from bagel_mot.cli.chat import typed_path
from bagel_mot.data.documents import Dropout
from bagel_mot.data.packer import PackConfig
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.evaluation.benchmarks.mini_report import RowScore
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.settings import SETTINGS, TASKS, task_settings
from bagel_mot.threads import Threads
from bagel_mot.training.optimizer import OptimizerConfig, ScheduleConfig
from bagel_mot.training.recipe import AutoencoderRecipe, BagelRecipe
from bagel_mot.version import __version__

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
COMMANDS = (
    "generate",
    "edit",
    "ask",
    "chat",
    "app",
    "serve",
    "demo",
    "info",
    "verify",
    "download",
    "convert",
    "init",
    "train",
    "eval",
    "bench",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recorded checkpoint, with defaults that make small pictures in two steps and short answers."""
    folder = Path(shutil.copytree(GOLDEN / "checkpoint", tmp_path_factory.mktemp("tiny") / "checkpoint"))
    short = {"num_timesteps": 3, "max_think_tokens": 4}
    defaults = {
        "generate": {"size": [48, 32], **short},
        "edit": short,
        "ask": {"max_new_tokens": 5},
        "vae_transform": {"max_size": 64, "min_size": 32},
        "vit_transform": {"max_size": 70, "min_size": 28},
    }
    (folder / "bagel_defaults.json").write_text(json.dumps(defaults))
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the current folder; COLUMNS keeps the help from being broken into slivers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=input)


def refused(*arguments: object, match: str) -> None:
    """Status 2, one sentence on standard error, nothing on standard output."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert re.search(match, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


# ------------------------------------------------------------------------------------------------------------- help


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f" {name} " in result.stdout for name in COMMANDS)
    assert run("--version").stdout.startswith("bagel ")


def _help_of(*arguments: str) -> str:
    """The words of a help, without frames and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", run(*arguments).stdout).split())


@pytest.mark.parametrize("task", TASKS)
def test_the_whole_help_has_each_setting_with_default_and_range(task: Any) -> None:
    text = _help_of(task, "--help-all")
    for setting in task_settings(task):
        flag = setting.name.replace("_", "-")
        assert f"--{flag}" in text or f"--[no-]{flag}" in text
        assert f"{setting.about}" in text
        assert setting.when in text
        assert setting.kind == "bool" or f"[{setting.range}]" in text
    for setting in SETTINGS.values():
        if task not in setting.tasks:
            assert f"--{setting.name.replace('_', '-')} " not in text
    if task == "edit":
        assert "[default: 2]" in text
        assert "[default: text_channel]" in text


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_is_short_and_nothing_in_it_is_cut(command: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = [command] if command else []
    short = run(*name, "--help")
    assert short.exit_code == 0
    assert len(short.stdout.splitlines()) < 80
    whole = [run(*name, "--help-all").stdout] if command else []
    for text in (short.stdout, *whole):
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert "<bool>" not in text
    if whole:
        options = {*re.findall(r"(?<![\w-])--[\w\[-][\w\]-]+", short.stdout)}
        assert options <= {*re.findall(r"(?<![\w-])--[\w\[-][\w\]-]+", whole[0])} | {"--help-all"}


def test_less_used_settings_are_in_the_whole_help_alone() -> None:
    assert "--cfg-renorm-min" not in run("generate", "--help").stdout
    assert "--help-all shows" in run("generate", "--help").stdout
    assert "--cfg-renorm-min FLOAT" in run("generate", "--help-all").stdout
    assert "--help-all" not in run("init", "--help").stdout  # has nothing more to say


@pytest.mark.parametrize("command", ["generate", "ask", "serve", "convert"])
def test_help_marks_precisions_that_lose_accuracy(command: str) -> None:
    text = _help_of(command, "--help")
    written = LOSSY & {*(STORED if command == "convert" else QUANTISED)}  # activations are in no file
    assert set(re.findall(r"([\w-]+) \(lossy\)", text)) == written


def test_help_is_fast_because_torch_is_not_imported() -> None:
    slow = ("torch", "pydantic", "numpy", "PIL", "tokenizers")
    code = f"import sys, bagel_mot.cli; print([m for m in {slow} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("info", "download")])
def test_commands_that_compute_take_a_number_of_threads(command: str) -> None:
    assert "--threads" in run(command, "--help").stdout


def test_a_number_of_threads_out_of_range_is_refused() -> None:
    result = run("bench", "--threads", 0)
    assert result.exit_code == 2
    assert result.stderr == "bagel: --threads is 0: it must be a whole number from 1 to 1024.\n"


def test_the_number_of_threads_reaches_the_model(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Threads] = []
    init = Engine.__init__

    def watched(self: Engine, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        seen.append(self.threads)

    monkeypatch.setattr(Engine, "__init__", watched)
    monkeypatch.setenv("BAGEL_THREADS", "3")
    for options in (["--threads", 2], []):
        assert run("generate", "a", "-c", tiny, "--seed", 0, *options).exit_code == 0
    assert seen == [Threads(2, asked=True), Threads(3, asked=True)]
    monkeypatch.setenv("BAGEL_THREADS", "none")
    result = run("generate", "a", "-c", tiny)
    assert result.exit_code == 2
    assert result.stderr == "bagel: BAGEL_THREADS is 'none': it must be a whole number from 1 to 1024.\n"


# ------------------------------------------------------------------------------------------------------- generation


def test_generate_writes_what_the_api_draws(tiny: str) -> None:
    result = run("generate", "a red car", "-o", "car.png", "-c", tiny, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("car.png  seed 3")
    drawn = Image.open("car.png")
    expected = Bagel.from_pretrained(tiny).generate("a red car", seed=3)
    assert drawn.size == (48, 32)
    assert drawn.tobytes() == expected.tobytes()
    assert drawn.info["prompt"] == "a red car"
    assert drawn.info["seed"] == "3"


def test_several_prompts_and_copies_get_numbers(tiny: str) -> None:
    result = run("generate", "a", "b", "-n", 2, "-o", "sub/x.png", "-c", tiny, "--seed", 5, "--json", "all.json")
    assert result.exit_code == 0, result.output
    listing = json.loads(Path("all.json").read_text())
    assert [(entry["file"], entry["prompt"], entry["seed"]) for entry in listing] == [
        (str(Path(f"sub/x-{number}.png")), prompt, seed)
        for number, (prompt, seed) in enumerate([("a", 5), ("a", 6), ("b", 5), ("b", 6)], start=1)
    ]
    assert len({Path(entry["file"]).read_bytes() for entry in listing}) == 4


def test_settings_reach_the_model_under_both_spellings(tiny: str) -> None:
    given = ("--cfg-text-scale", 2.5, "--cfg_interval", 0.2, 0.9, "--size", "32x48", "--no-think", "--num_timesteps", 4)
    result = run("generate", "x", "-c", tiny, "--json", "-", *given)
    assert result.exit_code == 0, result.output
    (facts,) = json.loads(result.stdout)
    settings = facts["settings"]
    assert (settings["cfg_text_scale"], settings["cfg_interval"], settings["num_timesteps"]) == (2.5, [0.2, 0.9], 4)
    assert facts["size"] == [32, 48]
    assert settings["think"] is False


def test_edit_and_ask(tiny: str) -> None:
    image = GOLDEN / "images" / "wide.png"
    result = run("edit", image, "make it dark", "-o", "dark.webp", "-c", tiny, "--seed", 0)
    assert result.exit_code == 0, result.output
    assert Image.open("dark.webp").size == (64, 32)
    result = run("ask", image, "dark.webp", "What changed?", "-c", tiny, "--json", "answer.json")
    assert result.exit_code == 0, result.output
    expected = Bagel.from_pretrained(tiny).ask([image, "dark.webp"], "What changed?")
    assert json.loads(Path("answer.json").read_text())["text"] == expected
    assert result.stdout == expected + "\n"
    assert run("ask", "Who are you?", "-c", tiny).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("generate", " "), "write something"),
        (("generate", "x", "--size", "50x32"), "50×32.*multiple of 16"),
        (("generate", "x", "--size", "big"), "size is 'big'"),
        (("generate", "x", "--cfg-renorm-min", "2"), "cfg_renorm_min is 2.0: it must be 0 to 1"),
        (("generate", "x", "--cfg-interval", "0.9", "0.1"), "cfg_interval"),
        (("generate", "x", "--cfg-renorm-type", "none"), "global, channel or text_channel"),
        (("generate", "x", "--num-timesteps", "1"), "num_timesteps is 1"),
        (("generate", "x", "--cfg-interval", "0.5", "0.5"), "low < high"),
        (("generate", "x", "--seed", "9" * 401), "seed is 9+…: it must be"),
        (("chat", "--seed", "9" * 401), "seed is 9+…: it must be"),
        (("generate", "x", "--cfg-text-scale", "abc"), "cfg_text_scale is 'abc': it must be 0 to 20"),
        (("generate", "x", "--num-timesteps", "2.5"), "num_timesteps is '2.5': it must be a whole number, 2 to 1000"),
        (("generate", "x", "--cfg-interval", "0.4", "-o", "y.png"), "cfg_interval is '0.4 -o': it must be two numbers"),
        (("generate", "x", "--seed", str(2**63)), "it must be 0 to 2⁶³ − 1 or none"),
        (("generate", "x", "--json", "/proc/nope/x.json"), "/proc/nope/x.json cannot be written"),
        (("chat", "-o", "/dev/null"), "/dev/null cannot be written"),
        (("generate", "x", "-o", "out.xyz"), "png"),
        (("generate", "x", "--precision", "float99"), "float99"),
        (("generate", "x", "--device", "toaster"), "toaster"),
        (("edit", "missing.png", "make it dark"), "missing.png"),
        (("ask", "missing.png", "What?"), "missing.png"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tiny: str, arguments: tuple[str, ...], match: str) -> None:
    refused(*arguments, "-c", tiny, match=match)


def test_an_edit_needs_an_image_and_an_instruction() -> None:
    refused("edit", "make it dark", match="a picture to change is missing: write its file before the instruction")
    refused("edit", match="the instruction is missing: write it as in bagel edit")
    for name in ("car.png", "other.png"):
        shutil.copy(GOLDEN / "images" / "tiny.png", name)
    refused("edit", "car.png", match="car.png is a file, and the instruction for it is missing: write it after")
    refused("edit", "car.png", "other.png", match="other.png is a file, and the instruction for it is missing")
    refused("ask", "car.png", "other.png", match="other.png is a file, and the question about it is missing")


def test_a_hyphen_reads_the_text_from_standard_input(tiny: str) -> None:
    def prompt(*arguments: str, input: str) -> str:
        result = run(*arguments, "-c", tiny, "--json", "facts.json", input=input)
        assert result.exit_code == 0, result.output
        facts = json.loads(Path("facts.json").read_text())
        return str((facts[0] if isinstance(facts, list) else facts)["prompt"])

    shutil.copy(GOLDEN / "images" / "tiny.png", "car.png")
    assert prompt("generate", "-", input="a red car\n") == "a red car"
    assert prompt("edit", "car.png", "-", input="make it\nnight\n") == "make it\nnight"
    assert prompt("ask", "-", input="What?") == "What?"
    refused("generate", "-", match="- reads a text from standard input, which is empty")
    refused("generate", "-", "-", match="- is given more than once")


def test_an_unknown_checkpoint_or_option_is_refused() -> None:
    refused("generate", "x", "-c", "no-such-folder", match="no-such-folder")
    refused("generate", "x", "--cfg-txt-scale", 1, match="no such option: --cfg-txt-scale")
    refused("draw", "x", match="no such command 'draw'")
    refused("--frobnicate", match="no such option")


@pytest.mark.parametrize("command", [("generate", "x"), ("edit", "missing.png", "make it dark")])
@pytest.mark.parametrize("place", ["file/out.png", "folder.png", "/proc/nope/x.png"])
def test_an_image_that_cannot_be_written_is_refused_before_anything_is_loaded(
    command: tuple[str, ...], place: str
) -> None:
    Path("file").write_text("")
    Path("folder.png").mkdir()
    refused(*command, "-c", "no-such-folder", "-o", place, match=f"^bagel: {place} cannot be written")


def test_a_question_may_not_be_forgotten(tiny: str) -> None:
    shutil.copy(GOLDEN / "images" / "tiny.png", "car.png")
    refused("ask", "car.png", "-c", "no-such-folder", match="car.png is a file, and the question about it is missing")
    refused("edit", "car.png", "-c", "no-such-folder", match="car.png is a file, and the instruction for it is missing")
    assert run("ask", "car.jpg", "-c", tiny).exit_code == 0  # no file: a text like any other
    assert run("ask", "word " * 100, "-c", tiny).exit_code == 0  # longer than a file's name may be


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")
def test_results_go_through_links(tiny: str) -> None:
    Path("kept").mkdir()
    for name in ("x.png", "x.json"):
        Path(name).symlink_to(Path("kept") / name)
    result = run("generate", "x", "-c", tiny, "-o", "x.png", "--json", "x.json")
    assert result.exit_code == 0, result.output
    assert Path("x.png").is_symlink()
    assert Path("x.json").is_symlink()
    assert Image.open("kept/x.png").size == (48, 32)
    assert json.loads(Path("kept/x.json").read_text())[0]["file"] == "x.png"


# ------------------------------------------------------------------------------------------------------------- chat


def test_chat_draws_answers_undoes_and_saves(tiny: str) -> None:
    lines = [
        "/help",
        f"/image {GOLDEN / 'images' / 'square.png'}",
        "/set num_timesteps=2",
        "/set",
        "/draw the same in blue",
        "What changed?",
        "/undo",
        "/save kept",
        "/quit",
        "never read",
    ]
    result = run("chat", "-c", tiny, "--seed", 1, input="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert "/draw [TEXT]" in result.stdout
    assert "num_timesteps=2" in result.stdout
    assert "001.png  seed 1" in result.stdout
    drawn = Image.open("bagel-chat/001.png")
    session = Bagel.from_pretrained(tiny).session()
    session.add(GOLDEN / "images" / "square.png")
    session.add("the same in blue")
    assert session.generate_image(seed=1, num_timesteps=2).tobytes() == drawn.tobytes()
    kept = json.loads(Path("kept/session.json").read_text())
    assert [turn["kind"] for turn in kept["turns"]] == ["image", "text", "drawing"]
    result = run("chat", "-c", tiny, input="/load kept\n/undo\n/undo\n/undo\n")
    assert "1 turns left" in result.stderr, "the text goes with the drawing"
    assert "0 turns left" in result.stderr
    assert result.exit_code == 0
    assert "nothing to undo" in result.stderr


def test_undo_in_the_chat_takes_a_whole_turn_back(tiny: str) -> None:
    image = GOLDEN / "images" / "square.png"
    lines = [
        "/set num_timesteps 2",
        "/set max_new_tokens 2",
        f"/image {image}",
        "/draw a car",
        "/draw",
        "/undo",
        "/undo",
        "What?",
        "/undo",
        "/save kept",
    ]
    result = run("chat", "-c", tiny, "--seed", 1, input="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert [line for line in result.stderr.splitlines() if "left" in line] == [
        "3 turns left",
        "1 turns left",
        "1 turns left",
    ]
    assert [turn["kind"] for turn in json.loads(Path("kept/session.json").read_text())["turns"]] == ["image"]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ('"a b.png"', "a b.png"),
        ("'a b.png'", "a b.png"),
        (r"a\ b.png", "a b.png"),
        (r"it\'s\ \(1\).png", "it's (1).png"),
        ("a b.png", "a b.png"),
        ("it's.png", "it's.png"),
        ('"quoted".png', '"quoted".png'),
    ],
)
def test_paths_in_the_chat_are_typed_as_terminals_paste_them(
    typed: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert typed_path(typed) == Path(name)


def test_undo_takes_back_whole_turns(tiny: str) -> None:
    picture = GOLDEN / "images" / "square.png"
    for lines, left in (
        (["/draw a car", "/undo"], []),
        ([f"/image {picture}", "/draw in blue", "/undo"], ["image"]),
        ([f"/image {picture}", "What is it?", "/undo"], ["image"]),
        (["a car", "/draw", "/undo"], ["text", "answer"]),
        (["/draw a car", f"/image {picture}", "/undo", "/undo"], []),
    ):
        for more in ([], ["--think"]):
            result = run("chat", "-c", tiny, *more, input="\n".join([*lines, "/save kept"]))
            assert result.exit_code == 0, result.output
            kinds = [turn["kind"] for turn in json.loads(Path("kept/session.json").read_text())["turns"]]
            assert [kind for kind in kinds if kind not in ("system", "thought")] == left, (lines, kinds)
            shutil.rmtree("kept")


def test_set_takes_a_name_and_a_value(tiny: str) -> None:
    lines = "/set num_timesteps 2\n/set cfg-interval 0.2 0.9\n/set stop=a = b\n/set\n/set eta\n/set num_timesteps x\n"
    result = run("chat", "-c", tiny, input=lines)
    assert result.stdout.splitlines() == ["num_timesteps=2", "cfg_interval=(0.2, 0.9)", "stop=('a = b',)"]
    assert "'eta' has no value" in result.stderr
    assert "num_timesteps is 'x'" in result.stderr


def test_a_chat_without_images_leaves_no_folder(tiny: str) -> None:
    for folder in ("new", "kept"):
        if folder == "kept":
            Path(folder).mkdir()
        assert run("chat", "-c", tiny, "-o", folder, input="/help\n").exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["kept"]


def test_chat_goes_on_after_bad_input(tiny: str) -> None:
    lines = "/image missing.png\n/dance\n/set cfg_text_scale=99\n/set magic=1\n/save\n/draw\n/set seed=4\n/draw x\n"
    result = run("chat", "-c", tiny, input=lines)
    assert result.exit_code == 0, result.output
    for part in ("missing.png", "/dance", "cfg_text_scale is 99", "magic", "/save needs", "empty"):
        assert part in result.stderr
    assert "001.png  seed 4" in result.stdout


def test_a_turn_that_fails_uses_no_seed_up(tiny: str) -> None:
    lines = "/draw\n/set cfg_interval=0.2 0.9\n/set\n/draw x\n/draw y\n"
    result = run("chat", "-c", tiny, "--seed", 1, input=lines)
    assert "empty" in result.stderr
    assert "cfg_interval=(0.2, 0.9)" in result.stdout
    assert re.findall(r"seed (\d+)", result.stdout) == ["1", "2"]


def test_a_damaged_conversation_does_not_end_a_chat(tiny: str) -> None:
    Path("kept").mkdir()
    turns = [{"kind": "text", "text": 5}]
    document = {"version": 1, "think": False, "understanding": False, "marks": [0], "turns": turns}
    Path("kept/session.json").write_text(json.dumps(document))
    result = run("chat", "-c", tiny, input="/load kept\n/draw x\n")
    assert result.exit_code == 0, result.output
    assert "is damaged" in result.stderr
    assert "001.png" in result.stdout


def test_chat_never_draws_over_an_image(tiny: str) -> None:
    folder = Path("bagel-chat")
    folder.mkdir()
    for name in ("002.png", "011.png", "7a.png", "½.png"):
        (folder / name).write_text("kept")
    result = run("chat", "-c", tiny, input="/draw x\n/draw y\n")
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        str(folder / name) for name in ("012.png", "013.png")
    ]
    assert sum(path.read_bytes() == b"kept" for path in folder.iterdir()) == 4


def test_thinking_cannot_be_set_in_a_chat_begun_without_it(tiny: str) -> None:
    lines = "/set think=true\n/set think=false\n/set\n/draw x\n"
    result = run("chat", "-c", tiny, input=lines)
    assert result.stderr.splitlines() == [
        "bagel: think cannot be switched on in a chat begun without it: start one with --think."
    ]
    assert "think=False" in result.stdout
    assert "001.png" in result.stdout
    result = run("chat", "-c", tiny, "--think", input="/set think=true\n/draw x\n/save kept\n")
    assert "bagel: " not in result.stderr
    assert "002.png" in result.stdout


def test_a_loaded_chat_decides_whether_it_thinks(tiny: str) -> None:
    run("chat", "-c", tiny, input="/draw x\n/save plain\n")
    result = run("chat", "-c", tiny, "--think", input="/set think=true\n/load plain\n/set\n/draw y\n")
    assert "bagel: " not in result.stderr
    assert "nothing is set" in result.stdout
    assert "002.png" in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_at_the_prompt_ends_with_130(tiny: str) -> None:
    command = [sys.executable, "-m", "bagel_mot", "chat", "-c", tiny]
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def hear_interrupts() -> None:  # a shell that runs the tests in the background has them ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    chat = subprocess.Popen(command, text=True, env=environment, preexec_fn=hear_interrupts, **pipes)
    assert chat.stdin is not None
    assert chat.stdout is not None
    chat.stdin.write("/set\n")
    chat.stdin.flush()
    assert chat.stdout.readline().strip() == "nothing is set"  # it waits for the next line now
    time.sleep(0.2)
    chat.send_signal(signal.SIGINT)
    _, errors = chat.communicate(timeout=60)
    assert chat.returncode == 130
    assert "Traceback" not in errors


# ---------------------------------------------------------------------------------------------------- info, verify


def test_info_counts_what_is_there(tiny: str) -> None:
    result = run("info", tiny, "--json", "-")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    checkpoint = Bagel.from_pretrained(tiny).checkpoint
    total = sum(p.numel() for part in (checkpoint.model, checkpoint.autoencoder) for p in part.parameters())
    assert facts["parameters"]["total"] == total
    assert facts["parameters"]["und expert"] == facts["parameters"]["gen expert"]
    assert facts["pictures"]["drawn_by_default"] == "48×32"
    text = run("info", tiny).stdout
    assert f"{total:,}" in text
    refused("info", "nowhere", match="nowhere")


def test_info_of_the_official_size() -> None:
    facts = json.loads(run("info", "7b-mot", "--json", "-").stdout)
    assert facts["folder"] is None
    assert 14.0e9 < facts["parameters"]["total"] < 15.2e9
    assert facts["cache_bytes"]["a token"] == 2 * 2 * 28 * 4 * 128


def test_verify_exit_codes(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    document = json.loads((folder / "cases.json").read_text())
    document["cases"] = [case for case in document["cases"] if case["kind"] in ("tokenize", "resize")]
    (folder / "cases.json").write_text(json.dumps(document))
    from safetensors.torch import save_file

    save_file({}, folder / "expected.safetensors")
    result = run("verify", folder, "--json", "report.json")
    assert result.exit_code == 0, result.output
    assert "pass" in result.stdout
    assert "FAIL" not in result.stdout
    report = json.loads(Path("report.json").read_text())
    assert report["passed"]
    assert {row["case"] for row in report["rows"]} == {case["name"] for case in document["cases"]}
    document["cases"].append({"name": "odd", "kind": "dance"})
    (folder / "cases.json").write_text(json.dumps(document))
    result = run("verify", folder, "--failed")
    assert result.exit_code == 1
    assert "dance" in result.stdout
    assert "size_vae_1024" not in result.stdout
    (folder / "cases.json").unlink()
    refused("verify", folder, match="cases.json")
    refused("verify", folder / "nothing", match="not a folder")


def test_info_versions_are_lines_for_a_report() -> None:
    result = run("info", "--versions", "--json", "versions.json")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert lines["bagel-mot"].startswith(f"{__version__} in ")
    assert lines["torch"] == torch.__version__
    assert lines["threads"] == str(torch.get_num_threads())
    assert "cpu" in lines["devices"]
    assert json.loads(Path("versions.json").read_text())["torch"] == torch.__version__


# ------------------------------------------------------------------------------------------------- train, eval, demo


def test_train_hands_the_recipe_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr("bagel_mot.training.tasks.run_recipe", lambda recipe: seen.append(recipe) or tmp_path / "last")
    result = run("train", "mini-autoencoder", "steps=7", "optimizer.lr=2e-3")
    assert result.exit_code == 0, result.output
    assert (seen[0].steps, seen[0].optimizer.lr) == (7, 2e-3)
    assert result.stdout.strip() == str(tmp_path / "last")
    refused("train", "no.yaml", match="no.yaml")
    refused("train", match="missing argument 'RECIPE': .* mini-bagel-further")
    refused("train", "mini-autoencoder", "stepz=7", match="stepz")
    refused("train", "mini-autoencoder", "optimizer.betas=[1.5,0.9]", match="optimizer.betas")


def test_train_lists_the_packaged_recipes_with_a_line_each() -> None:
    result = run("train", "--list")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if len(line.split()) > 1)
    assert lines.keys() >= {"mini-autoencoder", "mini-bagel", "mini-bagel-further"}
    assert lines["mini-bagel-further"].startswith("The embedded model mini, trained further")


@pytest.mark.slow
def test_train_that_is_interrupted_saves_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from bagel_mot.training.tasks import autoencoder

    recipe = "mini-autoencoder"
    small = ("output=run", "steps=3", "batch_size=2", "precision=float32", "device=cpu", "model.ch_mult=[1,1]")
    monkeypatch.setattr(autoencoder, "_STATISTICS_IMAGES", 4)
    with monkeypatch.context() as patch:
        # Once in every step: the signal falls into the first one.
        patch.setattr(autoencoder.AutoencoderTask, "tokens", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or 1)
        result = run("train", recipe, *small)
    assert result.exit_code == 130, result.output
    assert "stopped at step 1; run the same command to go on" in result.stdout
    assert Path("run/step-00000001").is_dir()
    refused("train", recipe, *small, "model.ch=64", match="model.ch was 32 and is now 64")
    result = run("train", recipe, *small)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path("run/step-00000003"))


def test_train_where_no_folder_can_be_made_is_refused() -> None:
    Path("taken").write_text("")
    recipe = "mini-autoencoder"
    refused("train", recipe, "output=taken/run", match="the folder taken/run cannot be made")


def test_eval_prints_and_writes_the_rows_and_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    ran: list[str] = []
    broken_off = {"ask/exist"}

    def run_row(runner: Any, name: str, items: Any, progress: Any) -> RowScore:
        ran.append(name)
        if name in broken_off:
            raise KeyboardInterrupt
        return RowScore(name, 3, 4, 1.0)

    def score(*rows: str, items: int = 4, seed: int = 0, model: str = tiny, precision: str = "float32") -> Result:
        ran.clear()
        options = [option for row in rows for option in ("--rows", row)]
        options += ["--items", str(items), "--seed", str(seed), "--precision", precision]
        return run("eval", "mini", "-c", model, *options, "--json", "scores.json")

    monkeypatch.setattr("bagel_mot.evaluation.benchmarks.mini_report.run_row", run_row)
    assert score("ask/count", "ask/exist").exit_code == 130
    assert list(json.loads(Path("scores.json").read_text())["rows"]) == ["ask/count"]
    broken_off.clear()
    result = score("ask/count", "ask/exist")
    assert result.exit_code == 0, result.output
    assert ran == ["ask/exist"]
    assert "0.301 – 0.954" in result.stdout
    row = {"right": 3, "total": 4, "share": 0.75, "interval": [0.3006, 0.9544], "seconds": 1.0}
    assert json.loads(Path("scores.json").read_text())["rows"] == {"ask/count": row, "ask/exist": row}
    score("draw/colours")
    assert ran == ["draw/colours"]
    assert len(json.loads(Path("scores.json").read_text())["rows"]) == 3  # those of before stay
    score("draw/colours", seed=1)
    assert ran == ["draw/colours"]
    assert list(json.loads(Path("scores.json").read_text())["rows"]) == ["draw/colours"]
    score("ask/count", seed=1, precision="bfloat16")  # scores of another precision are not mixed with these
    assert ran == ["ask/count"]
    report = json.loads(Path("scores.json").read_text())
    assert (list(report["rows"]), report["precision"]) == (["ask/count"], "bfloat16")
    [weights] = Path(tiny).glob("ema*.safetensors")
    assert score("ask/count", seed=1, model=str(weights)).exit_code == 0  # a checkpoint's file stands for its folder
    assert json.loads(Path("scores.json").read_text())["fingerprint"] == report["fingerprint"]
    Path("scores.json").write_text("not a report")
    score("draw/colours")
    assert ran == ["draw/colours"]
    refused("eval", "maxi", "-c", tiny, match="maxi")
    refused("eval", "mini", "-c", tiny, "--rows", "singing", match="singing")


def test_demo_writes_page_sheet_and_images(tiny: str) -> None:
    result = run("demo", "-c", tiny, "-o", "shown", "--json", "demo.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(Path("shown/index.html")), str(Path("shown/index.png"))]
    report = json.loads(Path("demo.json").read_text())
    sections = [card["section"] for card in report["cards"]]
    assert [sections.count(name) for name in ("Drawn", "Edited", "Asked", "Thought about")] == [4, 3, 3, 2]
    page = Path("shown/index.html").read_text()
    assert page.count("data:image/png;base64,") == 12
    assert 'src="http' not in page
    assert Image.open("shown/index.png").width > 900
    assert all(Image.open(Path("shown") / card["file"]).size[0] > 0 for card in report["cards"])
    assert report["cards"][-1]["thinking"] != ""
    Path("taken").write_text("")
    refused("demo", "-c", tiny, "-o", "taken", match="taken")


def test_demo_tries_its_folder_before_it_draws(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("it draws")

    monkeypatch.setattr(Bagel, "generate", draw)
    Path("file").write_text("")
    for place in ("file/x", "/proc/nope/x"):
        refused("demo", "-c", tiny, "-o", place, match=f"^bagel: {place} cannot be written")


def test_demo_says_so_when_its_folder_is_lost(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path, write: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bagel_mot.demo.write_atomically", fill)
    refused("demo", "-c", tiny, "-o", "shown", match="shown cannot be written .*No space left")


# ----------------------------------------------------------------------------------------------------------- README


def test_the_readme_or_a_page_names_every_command() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    assert [name for name in COMMANDS if not re.search(rf"(^|`)bagel {name}\b", text, re.MULTILINE)] == []


def test_the_training_page_names_every_key_of_a_recipe() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    sections = (AutoencoderRecipe, BagelRecipe, OptimizerConfig, ScheduleConfig, PackConfig, Dropout, MiniConfig)
    keys = {field.name for section in sections for field in dataclasses.fields(section)} - {"kind"}
    assert {key for key in keys if f"`{key}`" not in text and f".{key}`" not in text} == set()


def test_an_option_has_one_meaning_in_all_commands() -> None:
    metavars: dict[str, set[str | None]] = {}
    defaults: dict[str, set[object]] = {}
    for found in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        for param in found.params:
            if param.param_type_name == "option" and not param.is_flag:
                long = [name for name in param.opts if name.startswith("--")][:1]
                name = long[0] if long else param.opts[0]
                metavars.setdefault(name, set()).add(param.metavar)
                if name == "--device":
                    defaults.setdefault(name, set()).add(param.default)
    assert "--dtype" not in metavars, "it is another name of --precision"
    assert "--to" not in metavars, "it is another name of --output"
    for option in ("--precision", "--device", "--checkpoint", "--memory", "--offload", "--prefer", "--json"):
        assert len(metavars[option]) == 1, (option, metavars[option])
    assert metavars["--output"] <= {"FILE", "FOLDER"}
    assert defaults["--device"] == {"auto"}
