"""A run of the real lmms-eval with the model of this package; tests start it as a process of its own.

`python lmms_run.py FOLDER simple|chat` makes small tasks in FOLDER, evaluates `mini` on them, and writes
`FOLDER/outcome.json`: scores and answers by task.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIDE = 64
TASKS = {
    # MME as lmms-eval has it, on circles of our own.
    "mme_mini": """
dataset_path: {data}/mme
dataset_kwargs: {{load_from_disk: true}}
task: mme_mini
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false}}
process_results: !function utils.mme
metric_list:
  - {{metric: mme_perception_score, aggregation: !function utils.mme_sum, higher_is_better: true}}
  - {{metric: mme_cognition_score, aggregation: !function utils.mme_sum, higher_is_better: true}}
metadata: {{version: 0.0}}
""",
    "imgedit_mini": """
dataset_path: {data}/edits
dataset_kwargs: {{load_from_disk: true}}
task: imgedit_mini
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: prompt
doc_to_target: key
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false}}
process_results: !function utils.drawn
metric_list:
  - {{metric: images, aggregation: mean, higher_is_better: true}}
metadata: {{version: 0.0}}
""",
    "cot_mini": """
dataset_path: {data}/mme
dataset_kwargs: {{load_from_disk: true}}
task: cot_mini
test_split: test
output_type: generate_visual_cot
doc_to_visual: !function utils.visual
doc_to_text: !function utils.two_steps
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false, visual_cot: true}}
process_results: !function utils.answered
metric_list:
  - {{metric: answered, aggregation: mean, higher_is_better: true}}
metadata: {{version: 0.0}}
""",
}
FUNCTIONS = """
import json
from PIL import Image
from lmms_eval.tasks.mme.utils import mme_aggregate_results as mme_sum
from lmms_eval.tasks.mme.utils import mme_process_results as mme

def visual(doc):
    return [doc["image"].convert("RGB")]

def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def two_steps(doc, lmms_eval_specific_kwargs=None):
    return f"[GEN_PROMPT]make the circle blue[/GEN_PROMPT][QUESTION]{doc['question']}[/QUESTION]"

def drawn(doc, results):
    said = json.loads(results[0])
    return {"images": float(Image.open(said["images"][0]).size == doc["image"].size)}

def answered(doc, results):
    return {"answered": float(bool(results[0]))}
"""


def make_tasks(folder: Path) -> None:
    """Writes small data sets, and the tasks that read them."""
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as ImageFeature
    from PIL import Image, ImageDraw

    def circle(color: str) -> Any:
        image = Image.new("RGB", (SIDE, SIDE), "white")
        ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=color)
        return image

    asked = [
        (
            f"{category}/{color}",
            circle(color),
            f"is there a {other} circle?",
            "Yes" if other == color else "No",
            category,
        )
        for category in ("color", "code_reasoning")
        for color in ("red", "blue")
        for other in ("red", "blue")
    ]
    edits = [(str(number), "make the circle blue", circle("red")) for number in range(2)]
    for name, keys, rows in (
        ("mme", ("question_id", "image", "question", "answer", "category"), asked),
        ("edits", ("key", "prompt", "image"), edits),
    ):
        features = Features({key: ImageFeature() if key == "image" else Value("string") for key in keys})
        columns = {key: [row[place] for row in rows] for place, key in enumerate(keys)}
        DatasetDict({"test": Dataset.from_dict(columns, features=features)}).save_to_disk(str(folder / "data" / name))
    (folder / "tasks").mkdir()
    for name, text in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(text.format(data=folder / "data"))
    (folder / "tasks" / "utils.py").write_text(FUNCTIONS)


def main(folder: Path, kind: str) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    make_tasks(folder)
    # lmms-eval has tasks of two steps for simple models alone.
    names = [name for name in TASKS if kind == "simple" or name != "cot_mini"]
    found = simple_evaluate(
        model="bagel_mot",
        model_args=f"checkpoint=mini,images={folder / 'images'},num_timesteps=4,seed=3",
        tasks=names,
        batch_size=4,
        device="cpu",
        force_simple=kind == "simple",
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        verbosity="ERROR",
    )
    samples = {
        name: [
            {"doc_id": one["doc_id"], "answers": one["filtered_resps"], "target": one["target"]}
            for one in found["samples"][name]
        ]
        for name in names
    }
    content = {"results": found["results"], "samples": samples, "package": sys.modules["bagel_mot"].__file__}
    (folder / "outcome.json").write_text(json.dumps(content, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
