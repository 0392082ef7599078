"""Load on a live server: how long requests take that come at random, and what working on them together gains.

    python benchmarks/serve.py --json benchmarks/results/serve-mini-cpu.json

Starts `bagel serve` and sends the same requests (a third each of drawing, editing and asking, seeded) three times:

1. one at a time: each is sent when the one before is answered;
2. so many at a time: a new one is sent whenever one is answered;
3. at random: arrivals are a Poisson process (seeded) whose rate is a share of what 2. achieved, whatever is still
   waiting. Latencies count from when a request was due.

The answers of all three are compared: they must be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import torch
from PIL import Image, ImageChops
from rich.console import Console
from rich.table import Table

from bagel_mot.bench.machine import machine
from bagel_mot.files import write_text
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.items import ask_items, draw_items, edit_items

KINDS = ("draw", "edit", "ask")
PERCENTILES = (50, 90, 99)
SIDE = 64  # pixels
_WARM = 6  # requests before anything is measured


@dataclass(frozen=True)
class Call:
    """A request, and how it is sent."""

    kind: str
    path: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back, and when."""

    kind: str
    seconds: float
    content: str


def calls(count: int, seed: int) -> list[Call]:
    """The requests, the same for the same seed: items of the evaluation, each with a picture of its own."""
    each = -(-count // len(KINDS))
    found = [
        Call("draw", "/v1/images/generations", {"json": {"prompt": item.prompt, "seed": number}})
        for number, item in enumerate(draw_items("two_things", each, seed))
    ]
    for number, item in enumerate(edit_items("recolour", each, seed)):
        data = {"prompt": item.instruction, "seed": str(number)}
        files = {"image": ("scene.png", png(draw(item.scene, SIDE)))}
        found.append(Call("edit", "/v1/images/edits", {"data": data, "files": files}))
    for item in ask_items("count", each, seed):
        uri = f"data:image/png;base64,{base64.b64encode(png(draw(item.scene, SIDE))).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": item.question}]
        body = {"messages": [{"role": "user", "content": parts}]}
        found.append(Call("ask", "/v1/chat/completions", {"json": body}))
    random.Random(seed).shuffle(found)
    return found[:count]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


async def send(client: httpx2.AsyncClient, call: Call, due: float | None = None) -> Answer:
    """Sends a request; its seconds count from `due`, or from now."""
    began = time.perf_counter() if due is None else due
    response = await client.post(call.path, **call.arguments)
    seconds = time.perf_counter() - began
    response.raise_for_status()
    body = response.json()
    content = body["choices"][0]["message"]["content"] if call.kind == "ask" else body["data"][0]["b64_json"]
    return Answer(call.kind, seconds, content)


async def together(client: httpx2.AsyncClient, todo: Sequence[Call], concurrency: int) -> list[Answer]:
    """All requests, so many at a time."""
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(todo))

    async def worker() -> None:
        for number, call in waiting:
            answers[number] = await send(client, call)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return [answers[number] for number in range(len(todo))]


async def at_random(client: httpx2.AsyncClient, todo: Sequence[Call], rate: float, seed: int) -> list[Answer]:
    """All requests, at the times of a Poisson process."""
    rng, due = random.Random(seed), time.perf_counter()
    tasks = []
    for call in todo:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(send(client, call, due)))
    return list(await asyncio.gather(*tasks))


def same(a: Answer, b: Answer) -> bool:
    """Whether two answers are the same, pictures up to rounding."""
    if a.kind == "ask":
        return a.content == b.content
    one, other = (Image.open(io.BytesIO(base64.b64decode(answer.content))) for answer in (a, b))
    return max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 2


def latencies(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Seconds by kind."""
    found = {}
    for kind in (*KINDS, "all"):
        seconds = [answer.seconds for answer in answers if kind in (answer.kind, "all")]
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        found[kind] = {f"p{p}": round(cuts[p - 1], 4) for p in PERCENTILES}
    return found


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """All three ways of sending, and what they took."""
    todo = calls(options.requests, options.seed)
    results: dict[str, Any] = {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=options.concurrency)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def timed(name: str, run: Callable[[], Awaitable[list[Answer]]]) -> list[Answer]:
            began = time.perf_counter()
            answers = await run()
            seconds = time.perf_counter() - began
            results[name] = {
                "seconds": round(seconds, 3),
                "per_second": round(len(answers) / seconds, 3),
                "latency_seconds": latencies(answers),
            }
            return answers

        await together(client, todo[:_WARM], 2)
        alone = await timed("one at a time", lambda: together(client, todo, 1))
        many = await timed(f"{options.concurrency} at a time", lambda: together(client, todo, options.concurrency))
        rate = options.rate or options.share * results[f"{options.concurrency} at a time"]["per_second"]
        open_loop = await timed("at random", lambda: at_random(client, todo, rate, options.seed))
    results["at random"]["arrivals_per_second"] = round(rate, 3)
    differing = [sum(not same(a, b) for a, b in zip(alone, others, strict=True)) for others in (many, open_loop)]
    return {"results": results, "answers_that_differ": differing}


def serve_and_measure(options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "bagel_mot", "serve", "--port", "0", "-c", options.checkpoint]
    command += ["--max-queue", str(max(64, options.requests))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"listens at (\S+)", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line}{server.stderr.read()}")
        try:
            return asyncio.run(measure(found[1], options))
        finally:
            server.terminate()
            server.stderr.read()


def table(report: dict[str, Any]) -> Table:
    shown = Table("sent", "requests/s", *(f"{kind} {name}" for kind in KINDS for name in ("p50", "p90", "p99")))
    for name, result in report["results"].items():
        cells = [f"{result['latency_seconds'][kind][p]:.2f}" for kind in KINDS for p in ("p50", "p90", "p99")]
        shown.add_row(name, f"{result['per_second']:.2f}", *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="mini")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rate", type=float, help="arrivals a second of the third way, if not by --share")
    parser.add_argument("--share", type=float, default=0.7, help="of the second way's throughput")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    facts = machine(torch.device("cpu"))
    report = serve_and_measure(options)
    names = list(report["results"])
    gain = report["results"][names[1]]["per_second"] / report["results"][names[0]]["per_second"]
    report = {
        "checkpoint": options.checkpoint,
        "machine": facts,
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "requests": options.requests,
        "concurrency": options.concurrency,
        "seed": options.seed,
        "gain_of_working_together": round(gain, 3),
        **report,
    }
    Console().print(table(report))
    print(f"{names[1]}: {gain:.2f} × the throughput of one at a time")
    print(f"answers that differ from those one at a time: {report['answers_that_differ']}")
    if options.json:
        write_text(Path(options.json), json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
