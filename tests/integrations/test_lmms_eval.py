"""The model of lmms-eval: what it is given and gives back; and in the real lmms-eval, as a slow test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.errors import PromptError, SettingError
from bagel_mot.integrations.lmms_eval.translation import (
    answer_settings,
    check_mode,
    draw_then_answer,
    drawn_answer,
    draws,
    given_images,
    image_file,
    inputs_of,
    model_settings,
)
from bagel_mot.task import Task

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).with_name("lmms_run.py")
VERSION = "lmms_eval==0.7.3"


def test_settings_of_the_task_and_of_the_user() -> None:
    given = {
        "max_new_tokens": 16,
        "temperature": 0,
        "top_p": 1.0,
        "num_beams": 1,
        "do_sample": False,
        "until": ["\n\n"],
    }
    assert answer_settings(given, {}) == {"max_new_tokens": 16, "stop": ("\n\n",)}
    sampled = {"do_sample": True, "temperature": 0.5, "top_p": 0.9}
    assert answer_settings(sampled, {"seed": 3}) == {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "seed": 3}
    assert answer_settings({"do_sample": True, "temperature": 0}, {}) == {}
    assert answer_settings({"max_new_tokens": 16}, {"max_new_tokens": 8}) == {"max_new_tokens": 8}
    with pytest.raises(SettingError, match="num_beams is 4"):
        answer_settings({"num_beams": 4}, {})


def test_arguments_of_the_model() -> None:
    found = model_settings({"seed": 1, "num_timesteps": 25, "cfg_interval": "0.4 1.0", "max_new_tokens": 9})
    assert found[Task.ASK] == {"seed": 1, "max_new_tokens": 9}
    assert found[Task.EDIT] == {"seed": 1, "num_timesteps": 25, "cfg_interval": (0.4, 1.0)}
    with pytest.raises(SettingError, match=r"no model argument 'num_timestep': did you mean num_timesteps\?"):
        model_settings({"num_timestep": 1})
    assert check_mode("draw") == "draw"
    with pytest.raises(SettingError, match="mode is 'drawing'"):
        check_mode("drawing")


def test_the_tasks_that_draw() -> None:
    assert [draws(task, "auto") for task in ("gedit_bench", "imgedit", "kris_bench", "WISE", "mme", "wisely")] == [
        *(True, True, True, True),
        *(False, False),
    ]
    assert draws("mme", "draw")
    assert not draws("imgedit", "answer")


def test_images_and_texts_keep_their_order() -> None:
    image = Image.new("RGB", (2, 2))
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": "What?"}]},
    ]
    assert inputs_of(messages) == ["Be brief.", image, "What?"]
    assert given_images(None) == []
    with pytest.raises(PromptError, match="'clip.mp4'"):
        given_images(["clip.mp4"])
    with pytest.raises(PromptError, match="the task gives a video"):
        inputs_of([{"role": "user", "content": [{"type": "video", "url": "clip.mp4"}]}])


def test_two_steps() -> None:
    steps = draw_then_answer("[GEN_PROMPT]mark it[/GEN_PROMPT]\n[QUESTION]how many?[/QUESTION]")
    assert (steps.drawing, steps.question) == ("mark it", "how many?")
    with pytest.raises(PromptError, match="does not draw before it answers"):
        draw_then_answer("how many?")


def test_drawn_images_are_told_as_json(tmp_path: Path) -> None:
    path = image_file(tmp_path, "imgedit", "test", "a/b", 1)
    assert path == tmp_path / "imgedit" / "test-a_b-1.png"
    assert json.loads(drawn_answer("thought", path)) == {"text": "thought", "images": [str(path)]}


def test_the_entry_point_names_what_is_there() -> None:
    from importlib import import_module

    with open(ROOT / "pyproject.toml", "rb") as file:
        [(name, target)] = tomllib.load(file)["project"]["entry-points"]["lmms_eval.models"].items()
    module, function = target.split(":")
    assert name == "bagel_mot"
    assert callable(getattr(import_module(module), function))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with lmms-eval in it: the one named by BAGEL_LMMS_EVAL_PYTHON, else a new one that
    sees the packages of this one.
    """
    if given := os.environ.get("BAGEL_LMMS_EVAL_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("lmms-eval")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    program = str(folder / "bin" / "python")
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    [own, new] = [
        subprocess.run([one, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
        for one in (sys.executable, program)
    ]
    Path(new, "zz_parent.pth").write_text(own + "\n")
    import torch

    (folder / "constraints.txt").write_text(f"torch=={torch.__version__.split('+')[0]}\n")
    for command in (
        ["install", VERSION, "-c", str(folder / "constraints.txt")],
        # It has to fit this PyTorch to the build, and nothing here uses it.
        ["uninstall", "-y", "torchvision"],
        ["install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)],
    ):
        done = subprocess.run([program, "-m", "pip", *command, "-q"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"lmms-eval cannot be installed here: {done.stderr.strip()[-300:]}")
    return program


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simple", "chat"])
def test_in_the_real_lmms_eval(python: str, kind: str, tmp_path: Path) -> None:
    # Another package of the name that this project's command has is installed, and breaks whoever imports it.
    (tmp_path / "beside" / "bagel").mkdir(parents=True)
    (tmp_path / "beside" / "bagel" / "__init__.py").write_text("raise ImportError('another bagel')\n")
    paths = os.pathsep.join([str(tmp_path / "beside"), str(ROOT)])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run(
        [python, str(RUN), str(folder), kind],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    assert Path(outcome["package"]).parents[1] == ROOT
    results = outcome["results"]
    # `mini` knows these circles: the sums are those of lmms-eval's own scorer.
    answers = {one["doc_id"]: (one["answers"][0], one["target"]) for one in outcome["samples"]["mme_mini"]}
    right = [answer.lower() == target.lower() for answer, target in answers.values()]
    assert len(right) == 8
    for start, name in ((0, "perception"), (4, "cognition")):
        pairs = [right[start : start + 2], right[start + 2 : start + 4]]
        wanted = sum(50 * sum(pair) + 100 * all(pair) for pair in pairs) / len(pairs)
        assert results["mme_mini"][f"mme_{name}_score,none"] == pytest.approx(wanted)
    assert results["imgedit_mini"]["images,none"] == 1.0
    drawn = [json.loads(one["answers"][0])["images"][0] for one in outcome["samples"]["imgedit_mini"]]
    assert all(Image.open(path).size == (64, 64) for path in drawn)
    if kind == "simple":
        assert results["cot_mini"]["answered,none"] == 1.0
        assert len(list((folder / "images" / "cot_mini").glob("*.png"))) == 8
