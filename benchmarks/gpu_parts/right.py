"""Is it right there? Recorded cases, batches, attention, precisions and seeds on a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot import Bagel
from bagel_mot.bench.machine import machine
from bagel_mot.checkpoint.precision import QUANTISED
from bagel_mot.errors import BagelError
from bagel_mot.inference.request import Recorder
from bagel_mot.model.attend_over import attend_over
from bagel_mot.verify import verify
from gpu_parts.common import failure

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
TOLERANCE = {"cpu": 1e-5}
ACCELERATOR_TOLERANCE = 1e-4
PROMPTS = ("a red star", "two blue cars", "a green house above a yellow sun")
QUESTION = "What is in the picture?"


def measure(device: torch.device, *, smoke: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """In miniature fewer precisions and steps are compared; what is compared is the same."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    tolerance = TOLERANCE.get(device.type, ACCELERATOR_TOLERANCE)
    steps = 3 if smoke else 12
    report: dict[str, Any] = {"machine": machine(device), "device": str(device), "tolerance": tolerance}
    for dtype, limit in ((torch.float32, tolerance), (torch.bfloat16, 1.0)):
        if dtype != torch.float32 and smoke:
            continue
        say(f"recorded cases in {dtype}")
        found = verify(GOLDEN, device=str(device), dtype=dtype, tolerance=limit)
        report[f"verify {str(dtype).removeprefix('torch.')}"] = {**found.to_json(), "folder": "tests/golden"}
    say("batches")
    bagel = Bagel.from_pretrained("mini", device=device, precision="float32")
    report["batch_error"] = batch_error(bagel, steps)
    say("attention")
    report["attention"] = attention_errors(device)
    say("seeds")
    here, there = (
        latent_and_logits(b, [PROMPTS[0]], steps)[0][0]
        for b in (bagel, Bagel.from_pretrained("mini", device="cpu", precision="float32"))
    )
    report["seed_error"] = relative(here, there)
    report["precisions"] = precision_errors(device, steps, say, QUANTISED[:3] if smoke else QUANTISED)
    report["summary"] = summary(report)
    return report


def latent_and_logits(bagel: Bagel, prompts: list[str], steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Latents of pictures drawn together, and the first logits of answers about a grey picture given together."""
    from PIL import Image

    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    drawn, said, tickets = [Recorder() for _ in prompts], [Recorder() for _ in prompts], []
    for i, prompt in enumerate(prompts):
        tickets.append(bagel.submit([prompt], num_timesteps=steps, seed=i, recorder=drawn[i]))
        asked = [grey, f"{QUESTION} {prompt}"]
        tickets.append(bagel.submit(asked, output="text", max_new_tokens=1, recorder=said[i]))
    for ticket in tickets:
        ticket.result()
    return [r.latent for r in drawn if r.latent is not None], [r.logits[0] for r in said]


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def batch_error(bagel: Bagel, steps: int) -> float:
    """The largest difference between requests together and alone."""
    together = latent_and_logits(bagel, list(PROMPTS), steps)
    worst = 0.0
    for i, prompt in enumerate(PROMPTS):
        alone = latent_and_logits(bagel, ["a cat"] * i + [prompt], steps)  # so that the seed is the same
        worst = max(worst, relative(alone[0][i], together[0][i]))
    lonely = latent_and_logits(bagel, [PROMPTS[0]], steps)
    return max(worst, relative(lonely[0][0], together[0][0]), relative(lonely[1][0], together[1][0]))


def attention_errors(device: torch.device) -> dict[str, float]:
    """Attention over a cache in one piece and in several, against float64, in every dtype."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for name, lengths, n, causal in (("whole", (300,), 40, False), ("pieces", (64, 200, 40), 40, False),
                                         ("causal", (64, 200, 40), 40, True)):  # fmt: skip
            query = torch.randn(n, 8, 64, generator=generator)
            parts = [(torch.randn(2, s, 64, generator=generator), torch.randn(2, s, 64, generator=generator))
                     for s in lengths]  # fmt: skip
            keys, values = (torch.cat([p[i] for p in parts], 1).double().repeat_interleave(4, 0) for i in (0, 1))
            total = keys.shape[1]
            mask = torch.ones(n, total, dtype=torch.bool).tril(total - n) if causal else None
            wanted = F.scaled_dot_product_attention(query.double().transpose(0, 1), keys, values, attn_mask=mask)
            moved = [(k[None].to(device, dtype), v[None].to(device, dtype)) for k, v in parts]
            got = attend_over(query.transpose(0, 1)[None].to(device, dtype), moved, causal=causal)
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = relative(got[0].cpu(), wanted)
    return found


def precision_errors(
    device: torch.device, steps: int, say: Callable[[str], None], names: tuple[str, ...]
) -> dict[str, Any]:
    """Latents and first logits of `mini` in every precision against bfloat16."""
    wanted = latent_and_logits(Bagel.from_pretrained("mini", device=device, precision="bfloat16"), [PROMPTS[0]], steps)
    found: dict[str, Any] = {}
    for name in names:
        say(f"precision {name}")
        try:
            bagel = Bagel.from_pretrained("mini", device=device, precision=name)
            got = latent_and_logits(bagel, [PROMPTS[0]], steps)
        except BagelError as error:
            found[name] = {"left_out": str(error)}
            continue
        except Exception as error:  # of a kernel, say: one precision must not end the others
            found[name] = {"error": failure(error)}
            continue
        found[name] = {
            "latent_error": relative(got[0][0], wanted[0][0]),
            "logits_error": relative(got[1][0], wanted[1][0]),
        }
    return found


def summary(report: dict[str, Any]) -> dict[str, Any]:
    rows = report["verify float32"]["rows"]
    return {
        "recorded quantities that pass in float32": sum(row["passed"] for row in rows),
        "of": len(rows),
        "batch error": report["batch_error"],
        "worst attention error in float32": max(e for n, e in report["attention"].items() if "float32" in n),
        "a seed's picture against the CPU's": report["seed_error"],
    }
