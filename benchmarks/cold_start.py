"""How long a first use takes, each in a process of its own: `python benchmarks/cold_start.py [--rounds N]`.

Prints a table of medians and writes benchmarks/results/cold-start.json. The page and the server are ready when they
answer. The machine should be quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch

RESULT = Path(__file__).parent / "results" / "cold-start.json"
BAGEL = [sys.executable, "-m", "bagel_mot"]


def finished(command: list[str]) -> float:
    """Seconds until a command has ended."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def ready(command: list[str], path: str) -> float:
    """Seconds until a server answers at `path`; it is ended then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                    return time.perf_counter() - started
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        image = os.path.join(folder, "car.png")
        measured = {
            "import bagel_mot": lambda: finished([sys.executable, "-c", "import bagel_mot"]),
            "bagel --help": lambda: finished([*BAGEL, "--help"]),
            "first image of mini": lambda: finished([*BAGEL, "generate", "a red car", "--seed", "0", "-o", image]),
            "server ready": lambda: ready([*BAGEL, "serve"], "/health"),
            "page ready": lambda: ready([*BAGEL, "app"], "/"),
        }
        seconds = {name: [measure() for _ in range(rounds)] for name, measure in measured.items()}
    medians = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
    }
    report = {"median_seconds": medians, "rounds": rounds, "torch": torch.__version__, "machine": machine}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, value in medians.items():
        print(f"{name:<22} {value:6.2f} s")


if __name__ == "__main__":
    main()
