"""Writes the settings, the plans and the measured figures of `benchmarks/results/` into the README and docs:
`python benchmarks/readme.py`.

bagel eval mini --json benchmarks/results/eval-mini.json
bagel bench --config 0.5b --precision float32 --json benchmarks/results/bench-0.5b-cpu-float32.json
bagel bench --config 0.5b --precision bfloat16 --json benchmarks/results/bench-0.5b-cpu-bfloat16.json
make bench-full
python benchmarks/precision.py
python benchmarks/autoencoder.py
python benchmarks/few_bits.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from bagel_mot.checkpoint.precision import PLAIN
from bagel_mot.cli.planning import planned
from bagel_mot.evaluation.benchmarks.mini import ROWS
from bagel_mot.evaluation.statistics import wilson
from bagel_mot.files import parse_size, size_text, write_text
from bagel_mot.inference.settings import SETTINGS, TASKS
from bagel_mot.model import vae_precision
from bagel_mot.training.packaged import find_recipe
from bagel_mot.training.plan import MachineShape, plan
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.recipe_files import RecipeFile

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
EVALUATION = RESULTS / "eval-mini.json"
BENCHES = {
    "AVX2, float32": RESULTS / "bench-0.5b-cpu-float32-avx2.json",
    "AVX-512, float32": RESULTS / "bench-0.5b-cpu-float32.json",
    "AVX-512, bfloat16": RESULTS / "bench-0.5b-cpu-bfloat16.json",
    "AMX, bfloat16": RESULTS / "bench-0.5b-cpu-bfloat16-amx.json",
}
FULL = RESULTS / "full-7b-mot-cpu.json"
TEACH = RESULTS / "teach.json"
LESSONS = {"new_thing": "teach-a-thing", "new_edit": "teach-an-edit", "new_question": "teach-a-question"}
PIXELS = RESULTS / "autoencoder-bfloat16.json"
FEW_BITS = RESULTS / "few-bits.json"
PRECISIONS = ("bfloat16", "float32", "int8", "int8-dynamic", "fp8", "int4", "nf4")
FILES = ("gguf-q8_0", "gguf-q4_0")
"""Precisions that are a file's alone, of what `mini` was converted to."""
# The README's own scores are those in float32.
SCORED = {n: RESULTS / ("eval-mini.json" if n == "float32" else f"eval-mini-{n}.json") for n in (*PRECISIONS, *FILES)}
CHAINS = {name: RESULTS / f"eval-mini-{name}-chains.json" for name in SCORED if name != "float32"}
COMPARED = ("draw", "draw held out", "ask", "edit", "chains", "riddles thinking", "riddles not thinking")
LOSS = 0.02
# (memory of a card, main memory beside it, the cards in words)
CARDS = (
    ("8GB", "32GB", "none, or 8 GB"),
    ("12GB", "32GB", "12 GB (RTX 3060, 4070)"),
    ("16GB", "32GB", "16 GB (RTX 4080, 5070 Ti)"),
    ("24GB", "64GB", "24 GB (RTX 3090, 4090)"),
    ("48GB", "64GB", "48 GB (A6000, L40S)"),
    ("80GB", "128GB", "80 GB (A100, H100)"),
)
# (label, rows by the beginning of their names, aim)
GROUPS: tuple[tuple[str, str, str], ...] = (
    ("text to image", "draw/", "0.80"),
    ("text to image, combinations never trained on", "draw held out/", "within 0.15"),
    ("questions", "ask/", "0.90"),
    ("edits", "edit/", "0.70"),
    ("chains of three edits in one session", "edit/chain", "0.45"),
    ("riddles, thinking", "riddle/", ""),
    ("riddles, not thinking", "riddle/", ""),
    ("the judge: scene recovered", "judge/fresh", "0.99"),
    ("the judge: the same through the autoencoder", "judge/through", "0.97"),
)


def abilities(report: dict[str, Any]) -> str:
    """The evaluation as a Markdown table: each group's mean, then its rows."""
    lines = ["| ability | share right | 95% interval | aim |", "|---|---|---|---|"]
    for label, beginning, aim in GROUPS:
        names = [name for name in ROWS if name.startswith(beginning) and name in report["rows"]]
        if label == "edits":
            names = [name for name in names if "chain" not in name]
        if "thinking" in label:
            names = [name for name in names if name.endswith(" not thinking") == ("not thinking" in label)]
        if not names:
            continue
        lines.append(_line(f"**{label}**", [report["rows"][name] for name in names], aim))
        if len(names) > 1:
            lines += [_line(f"· {_short(name)}", [report["rows"][name]], "") for name in names]
    gain = report["summary"].get("gain of thinking")
    if gain is not None:
        lines.append(f"| **what thinking adds** | {gain:+.3f} | | +0.30 |")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name.partition("/")[2].removesuffix(" not thinking").removesuffix(" thinking").replace("_", " ")


def _line(label: str, rows: Sequence[dict[str, Any]], aim: str) -> str:
    right, total = sum(row["right"] for row in rows), sum(row["total"] for row in rows)
    low, high = wilson(right, total)
    return f"| {label} | {right / total:.3f} | {low:.3f} – {high:.3f} | {aim} |"


def speed(reports: dict[str, dict[str, Any]]) -> str:
    """The benchmarks of several kinds of processors side by side as a Markdown table."""
    lines = ["| quantity | " + " | ".join(reports) + " |", "|---|" + "---|" * len(reports)]
    columns = [{_quantity(r["name"]): r for r in report["results"]} for report in reports.values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = [_cell(column[name]) if name in column else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    for kind, report in reports.items():
        summary = "; ".join(f"{name}: {value:.2f}" for name, value in report["summary"].items())
        lines.append(f"- {kind}: {_ran_on(report)}{'; ' * bool(summary)}{summary}.")
    return "\n".join(lines)


def _ran_on(report: dict[str, Any]) -> str:
    ran, depth = report["layers"], report["of_layers"]
    return f"{report['machine']['threads']} threads, " + ("all layers" if ran == depth else f"{ran} of {depth} layers")


def _quantity(name: str) -> str:
    return name.rpartition(",")[0] if name.startswith("training") else name  # without the number of layers


def _cell(result: dict[str, Any]) -> str:
    speedup = f" · {result['speedup']:.2f}×" if "speedup" in result else ""
    seconds = result.get("full_depth_seconds", result["seconds"]["ours"])
    return f"{seconds:.3g} s · {result['share']:.0%}{speedup}"


def official_size(report: dict[str, Any]) -> str:
    """What `make bench-full` measured as a Markdown table."""
    parts, rates = report["parts"], report["parts"]["machine"]
    lines = ["| what | measured |", "|---|---|"]
    disk, memory = rates["disk_bytes_per_second"] / 1e9, rates["memory_bytes_per_second"] / 1e9
    matmul = rates["matmul_flops_per_second"] / 1e9
    lines.append(
        f"| the machine: disk, memory, bfloat16 matmuls | {disk:.2f} GB/s, {memory:.1f} GB/s, {matmul:.0f} GFLOP/s |"
    )
    for name, part in parts.items():
        peak = f"peak {part['peak_resident_bytes'] / 1e9:.1f} GB" if "peak_resident_bytes" in part else ""
        if name.startswith("load"):
            disk = part.get("disk_bytes_per_second", rates["disk_bytes_per_second"])
            share = part["bytes_per_second"] / disk
            lines.append(
                f"| {name} | {part['seconds']:.0f} s, {share:.0%} of the disk's {disk / 1e9:.2f} GB/s, {peak} |"
            )
        elif name.startswith("ask"):
            share = part["bytes_per_second"] / rates["memory_bytes_per_second"]
            first, each = part["first_token_seconds"], part["seconds_per_token"]
            lines.append(
                f"| {name}, a picture of 448 pixels | first token {first:.1f} s, then {each:.2f} s a token, "
                f"{share:.0%} of the memory's rate, {peak} |"
            )
        elif name.startswith("generate"):
            share = part["matmul_flops_per_second"] / rates["matmul_flops_per_second"]
            each = part["seconds_per_evaluation_of_two_branches"]
            lines.append(
                f"| {name}, 256×256, 8 timesteps | {part['seconds']:.0f} s, {each:.2f} s a step of two branches, "
                f"{share:.0%} of the matmul rate, {peak} |"
            )
        elif name.startswith("reference"):
            lines.append(f"| {name}: first velocity and logits | {part['seconds']:.0f} s, {peak} |")
        elif name.startswith("compare"):
            velocity, logits = part["velocity_relative_error"], part["logits_relative_error"]
            lines.append(
                f"| {name.removeprefix('compare ')} against bfloat16, relative error | velocity {velocity:.3f}, "
                f"logits {logits:.3f} |"
            )
        elif name.startswith("memory"):
            more = part["predicted_bytes"] / part["peak_resident_bytes"] - 1
            lines.append(
                f"| {part['job']} in int4: memory predicted, measured | {part['predicted_bytes'] / 1e9:.1f} GB, "
                f"{peak} ({more:+.1%}) |"
            )
    return "\n".join(lines)


def scores_by_precision(reports: dict[str, dict[str, Any]]) -> str:
    """Abilities of `mini` in bfloat16, and what other precisions change, in points."""
    base, *others = reports
    longer = {name for name in others if _longer(reports, name)}
    lines = [f"| ability | {base} | " + " | ".join(others) + " |", "|---|" + "---|" * len(reports)]
    for name, share in reports[base]["summary"].items():
        if name in COMPARED:
            changes = [f"{-100 * _loss(reports, other, name):+.1f}" for other in others]
            lines.append(f"| {name} | {share:.3f} | " + " | ".join(changes) + " |")
    items = reports[base]["items"]
    note = f"{items} items in each row of the evaluation"
    if longer:
        chains = _chains(reports[base])
        named = ", ".join(name for name in others if name in longer)
        note += f"; of the chains {chains['total']} for {named} ({base}: {chains['share']:.3f} of these)"
    note += f"; of the checkpoint whose files have the fingerprint {reports[base]['fingerprint']}"
    return "\n".join([*lines, "", note + "."])


def pixels_in_bfloat16(report: dict[str, Any]) -> str:
    """What bfloat16 changes in the pixels of the autoencoder, in levels of 255."""
    lines = ["| images | mean | differ by more than 2 | worst |", "|---|---|---|---|"]
    lines += [
        f"| {row['images']} {name} | {row['mean']:.2f} | {row['share_above_2']:.2%} | {row['worst']} |"
        for name, row in report["rows"].items()
    ]
    return "\n".join([*lines, "", f"{report['machine']['processor']}, PyTorch {report['machine']['torch']}."])


def few_bits(report: dict[str, Any]) -> str:
    """Products of rows with quantised matrices as a Markdown table."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for name, found in report["milliseconds"].items():
        kind, dtype, rows = name.split(", ")
        cells.setdefault((kind, dtype), {})[rows] = f"{found['chosen']:.1f} ({found['plain']:.1f})"
    counts = list(next(iter(cells.values())))
    titles = ["1 row" if count == "1" else f"{count} rows" for count in counts]
    lines = ["| weights | activations | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(counts)]
    for (kind, dtype), row in cells.items():
        lines.append(f"| `{kind}` | {dtype} | " + " | ".join(row[count] for count in counts) + " |")
    return "\n".join(lines)


def _loss(reports: dict[str, dict[str, Any]], other: str, ability: str) -> float:
    """What a precision loses against the first: of the chains on more items where both have been scored on them."""
    base = next(iter(reports))
    if ability == "chains" and _longer(reports, other):
        return _chains(reports[base])["share"] - _chains(reports[other])["share"]
    return reports[base]["summary"][ability] - reports[other]["summary"][ability]


def _longer(reports: dict[str, dict[str, Any]], other: str) -> bool:
    base = next(iter(reports))
    return "chains" in reports[base] and "chains" in reports[other]


def _chains(report: dict[str, Any]) -> dict[str, Any]:
    return report["chains"]["rows"]["edit/chain of 3"]


def lossy(reports: dict[str, dict[str, Any]], *, but: Sequence[str] = ()) -> set[str]:
    """Rounded precisions that lose more than LOSS on any ability, but some. Float32, which rounds nothing, shows what
    chance does.
    """
    abilities = [name for name in COMPARED if name not in but]
    rounded = [name for name in list(reports)[1:] if name not in PLAIN]
    return {name for name in rounded if any(_loss(reports, name, ability) > LOSS for ability in abilities)}


def whole(reports: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of which every row has been scored."""
    return {name: report for name, report in reports.items() if report["summary"].keys() >= set(COMPARED)}


def read(paths: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def scored() -> dict[str, dict[str, Any]]:
    """Precisions of which every row has been scored, each with what was scored of chains beside."""
    longer = read(CHAINS)
    return whole({n: {**r, "chains": longer[n]} if n in longer else r for n, r in read(SCORED).items()})


def settings() -> str:
    """All settings as a Markdown table."""
    lines = ["| setting | default, values | what it does, and when to change it |", "|---|---|---|"]
    for setting in SETTINGS.values():
        defaults = {task: setting.default_text(task) for task in TASKS if task in setting.tasks}
        first = next(iter(defaults.values()))
        others = [f"{task}: {text}" for task, text in defaults.items() if text != first]
        default = "; ".join([first, *others])
        tasks = f"<br>{', '.join(defaults)}" if len(defaults) < len(TASKS) else ""
        lines.append(
            f"| `{setting.name}`{tasks} | **{default}**<br>{setting.range} | {setting.about} *{setting.when}* |"
        )
    return "\n".join(lines)


TRAINED = {
    "24GB": ("24GB", 1, "24 GB (RTX 3090, 4090)"),
    "40GB": ("40GB", 1, "40 to 48 GB (A100-40, A6000, L40S)"),
    "80GB": ("80GB", 1, "80 GB (A100, H100)"),
    "8x80GB": ("80GB", 8, "8 × 80 GB"),
    "multi-node": ("80GB", 16, "2 × 8 × 80 GB"),
}
"""Cards by profile: the memory of each, the number, and words."""
FINETUNING = ("t2i", "edit", "chat", "unified", "thinking")


def training_cards() -> str:
    """What each profile of the recipes for fine-tuning trains and takes for the official size, as a Markdown table."""
    lines = ["| cards | profile | what trains | " + " | ".join(f"`{name}`" for name in FINETUNING) + " |"]
    lines.append("|" + "---|" * (3 + len(FINETUNING)))
    for profile, (memory, processes, words) in TRAINED.items():
        machine = MachineShape(True, processes, parse_size(memory))
        cells, trained = [], ""
        for name in FINETUNING:
            file = RecipeFile(find_recipe(f"finetune/{name}"), ["init=7b-mot", "data={kind: mini}", "replay="])
            recipe = file.recipe(profile)
            assert isinstance(recipe, BagelRecipe)
            planned = plan(recipe, machine)
            assert planned.fits, planned.sentence()
            cells.append(size_text(planned.memory.total))
            if recipe.adapters is None:
                trained = "the recipe's experts, in full"
            else:
                side = recipe.max_sides.vae or 1024
                base = "NF4" if recipe.adapters.base else "bfloat16"
                trained = f"adapters on {base} weights, images to {side}²"
        lines.append(f"| {words} | `{profile}` | {trained} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cards() -> str:
    """What is chosen for the official weights on cards of several sizes, as a Markdown table.

    Everything in it is predicted: sizes from the configuration, the time from nominal rates, and the autoencoder of a
    CPU in float32, which takes no less than bfloat16 does where that is faster.
    """
    with mock.patch.object(vae_precision, "faster_on_cpu", return_value=False):
        return _cards()


def _cards() -> str:
    lines = ["| card | what is chosen | draw 1024×1024 | edit two images | ask | time |", "|---|---|---|---|---|---|"]
    best = min(plan["relative_seconds"] for plan in planned("7b-mot", "80GB", "128GB", measure=False)["plans"])
    for size, ram, names in CARDS:
        plan = next(plan for plan in planned("7b-mot", size, ram, measure=False)["plans"] if plan["chosen"])
        device, _, layers = plan["where"].partition(", ")
        place = layers or ("all on the card" if plan["device_bytes"] else f"on the {device.upper()}")
        chosen = f"{plan['precision']}, {place}" + (" (lossy)" if plan["lossy"] else "")
        peaks = [size_text(peak) for peak in (plan["device_bytes"] or plan["host_bytes"]).values()]
        lines.append(f"| {names} | {chosen} | " + " | ".join(peaks) + f" | {plan['relative_seconds'] / best:.3g}× |")
    return "\n".join(lines)


def lesson(taught: dict[str, Any], name: str) -> str:
    """What a lesson gave, as a Markdown table: the new ability, and the old ones."""
    lines = [f"| share right | before | after, {taught['examples']} examples |", "|---|---|---|"]
    lines.append(
        f"| **what was taught**, {taught['items']} items | {taught['right_before']:.2f} | {taught['right_after']:.2f} |"
    )
    for group, share in taught["old"].items():
        lines.append(f"| {group}, {taught['old_items']} items a row | {share['before']:.3f} | {share['after']:.3f} |")
    minutes, machine = f"{taught['training_seconds'] / 60:.0f} minutes", taught["machine"]
    where = f"{machine['cores']} cores, {machine['processor']}, torch {machine['torch']}, {machine['date']}"
    return "\n".join(
        [*lines, "", f"Training took {minutes} ({where}). `python benchmarks/teach.py {name}` does it all again."]
    )


def tables() -> dict[Path, dict[str, str]]:
    """The tables by file and mark."""
    chosen = {"cards": cards()}
    found = {ROOT / "README.md": chosen, ROOT / "README.zh-CN.md": chosen}
    found[ROOT / "docs" / "training.md"] = {"training cards": training_cards()}
    found[ROOT / "docs" / "settings.md"] = {"settings": settings()}
    measured: dict[str, str] = {}
    if EVALUATION.exists():
        measured["abilities"] = abilities(json.loads(EVALUATION.read_text(encoding="utf-8")))
    if reports := read(BENCHES):
        measured["speed"] = speed(reports)
    found[ROOT / "docs" / "measured.md"] = measured
    if FULL.exists():
        official = official_size(json.loads(FULL.read_text(encoding="utf-8")))
        found[ROOT / "docs" / "official.md"] = {"official size": official}
    if TEACH.exists():
        taught = json.loads(TEACH.read_text(encoding="utf-8"))
        for name, page in LESSONS.items():
            if name in taught:
                found[ROOT / "docs" / f"{page}.md"] = {f"lesson {name}": lesson(taught[name], name)}
    precision: dict[str, str] = {}
    if len(reports := scored()) > 1:
        precision["scores by precision"] = scores_by_precision(reports)
    if PIXELS.exists():
        precision["pixels in bfloat16"] = pixels_in_bfloat16(json.loads(PIXELS.read_text(encoding="utf-8")))
    if FEW_BITS.exists():
        precision["few bits"] = few_bits(json.loads(FEW_BITS.read_text(encoding="utf-8")))
    found[ROOT / "docs" / "precision.md"] = precision
    return found


def filled(path: Path, marked: dict[str, str]) -> str:
    """A file's text with its tables as they are now."""
    text = path.read_text(encoding="utf-8")
    for mark, table in marked.items():
        before, opening, rest = text.partition(f"<!-- {mark} -->\n")
        _, closing, after = rest.partition(f"<!-- end of {mark} -->")
        if not opening or not closing:
            raise SystemExit(f"{path.name} lacks the marks <!-- {mark} --> and <!-- end of {mark} -->")
        text = before + opening + table + "\n" + closing + after
    return text


if __name__ == "__main__":
    for page, marked in tables().items():
        write_text(page, filled(page, marked))
