"""Runs the lines of a list in batches, and leaves out what an earlier run has done."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError
from bagel_mot.files import locked, write_text, writing
from bagel_mot.images import open_image
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.lists.lines import ListLine, naming_line
from bagel_mot.inference.lists.naming import Naming
from bagel_mot.inference.lists.results import Results
from bagel_mot.inference.prepare import Preparer, with_seeds
from bagel_mot.inference.request import Listener, Request
from bagel_mot.inference.result import Result, save_image
from bagel_mot.inference.settings import resolve
from bagel_mot.task import Task

_ANOTHER_FOLDER = "give another output folder"


@dataclass(frozen=True)
class Job:
    """One result of a line.

    Attributes:
        line: the line.
        number: its place among the line's results, from 0.
        request: a hash of all that the result depends on.
        id: the path of its image below the output folder; of an answer its request, numbered where a list has it twice.
    """

    line: ListLine
    number: int
    request: str
    id: str


class ListRun:
    """A list and the folder of its results.

    Args:
        task: the task of all lines.
        lines: the lines.
        folder: the output folder; made if it is missing.
        naming: the names of the images.
        settings: the settings of lines that do not give their own, validated.
        model: facts by which the model is known, as JSON: results of another one are not taken for its own.
        redraw: whether images of other requests that are in the folder under the same names are replaced.

    Attributes:
        jobs: all results that are wanted, in order.
        pending: the results among them that are not there yet.

    Raises: DataError if the folder holds an image of that name that is not of this list; BagelError if the folder
        cannot be written.
    """

    def __init__(
        self,
        task: Task,
        lines: Sequence[ListLine],
        folder: Path,
        naming: Naming,
        *,
        settings: Mapping[str, Any],
        model: Mapping[str, Any],
        redraw: bool = False,
    ) -> None:
        self.task, self.lines, self.folder, self.naming = task, lines, folder, naming
        self.settings, self.model = settings, model
        with writing(folder, _ANOTHER_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(folder)
        self.jobs = list(self._jobs())
        self.pending = [job for job in self.jobs if not self._is_done(job)]
        if not redraw:
            self._check_free()

    def _jobs(self) -> Iterator[Job]:
        hashes: dict[Path, str] = {}
        seen: Counter[str] = Counter()
        for line in self.lines:
            for file in line.images:
                if file not in hashes:
                    with naming_line(line.number):
                        hashes[file] = _hash_of(file)
            settings = {**self.settings, **line.settings}
            for number in range(line.n):
                request = {
                    "task": str(self.task),
                    "prompt": line.prompt,
                    "images": [hashes[file] for file in line.images],
                    "settings": settings,
                    "number": number,
                    "model": self.model,
                }
                digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
                if line.names:
                    name = line.names[number]
                else:
                    seen[digest] += 1
                    name = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
                yield Job(line, number, digest, name)

    def _is_done(self, job: Job) -> bool:
        entry = self.results.get(job.id)
        is_ours = entry is not None and entry["request"] == job.request
        return is_ours and (not self.task.draws or (self.folder / job.id).is_file())

    def _check_free(self) -> None:
        """Checks that nothing else lies where images are to go.

        Raises:
            DataError: something does.
        """
        if not self.task.draws:
            return
        taken = [job for job in self.pending if (self.folder / job.id).exists()]
        if taken:
            job = taken[0]
            more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
            raise DataError(
                f"line {job.line.number}: {self.folder / job.id}{more} is there already and belongs to another prompt, "
                "image, setting or model: give another output folder, or --redraw to replace it."
            )

    def run(
        self,
        bagel: Bagel,
        *,
        batch: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
        on_result: Callable[[Mapping[str, Any]], None] = lambda entry: None,
    ) -> list[Mapping[str, Any]]:
        """Checks all lines that are left, then runs them and writes each result as soon as it is made.

        Args:
            bagel: the model.
            batch: requests that are at work at one time, at most.
            progress: called with what is done and all there is to do: denoising steps, or answers.
            on_result: called with each new line of `results.jsonl`.

        Returns: the lines of `results.jsonl` of all jobs, in order.

        Raises:
            BagelError: a line cannot be run (nothing was then), or failed, or a file cannot be written; what was made
                before stays.
        """
        with writing(self.folder, _ANOTHER_FOLDER), locked(self.folder, self.folder):
            self._check(bagel)
            self._work(bagel, batch, progress, on_result)
        found = [self.results.get(job.id) for job in self.jobs]
        return [entry for entry in found if entry is not None]

    def _check(self, bagel: Bagel) -> None:
        checked: set[int] = set()
        for job in self.pending:
            if job.line.number not in checked:
                checked.add(job.line.number)
                with naming_line(job.line.number):
                    bagel.engine.check_image(self._prepared(bagel, job.line)[0].size)

    def _prepared(self, bagel: Bagel, line: ListLine) -> list[Request]:
        """The requests of all results of a line."""
        prepare = Preparer(bagel.runtime)
        settings = {**self.settings, **line.settings}
        inputs = prepare.inputs([*line.images, line.prompt], self.task, settings)
        return with_seeds(prepare.request(self.task, inputs, settings), line.n)

    def _steps(self, bagel: Bagel, line: ListLine) -> int:
        """The denoising steps of one image of a line."""
        return resolve(self.task, {**self.settings, **line.settings}, bagel.defaults.of(self.task)).num_timesteps - 1

    def _work(
        self,
        bagel: Bagel,
        batch: int,
        progress: Callable[[int, int], None],
        on_result: Callable[[Mapping[str, Any]], None],
    ) -> None:
        listener, total, answered = Listener(), len(self.pending), count(1)
        if self.task.draws:
            total, done = sum(self._steps(bagel, job.line) for job in self.pending), count(1)
            listener = Listener(on_step=lambda step, of: progress(next(done), total))
        waiting = deque(self.pending)
        working: dict[Ticket[Result], Job] = {}
        line: ListLine | None = None
        requests: list[Request] = []
        try:
            while waiting or working:
                while waiting and len(working) < batch:
                    job = waiting.popleft()
                    with naming_line(job.line.number):
                        if line is not job.line:  # results of one line follow one another
                            line, requests = job.line, self._prepared(bagel, job.line)
                        working[bagel.submit_request(requests[job.number], listener)] = job
                bagel.engine.run_until_one(list(working))
                for ticket in [ticket for ticket in working if ticket.done()]:
                    job = working.pop(ticket)
                    with naming_line(job.line.number):
                        entry = self._store(job, ticket.result())
                    on_result(entry)
                    if not self.task.draws:
                        progress(next(answered), total)
        finally:
            for ticket in working:
                ticket.cancel()

    def _store(self, job: Job, result: Result) -> dict[str, Any]:
        """Writes a result: first its line, then its image. Returns the line."""
        line, path = job.line, self.folder / job.id
        entry: dict[str, Any] = {
            "id": job.id,
            "request": job.request,
            "line": line.number,
            "prompt": line.prompt,
            **({"images": [str(file) for file in line.images]} if line.images else {}),
            "seed": result.seed,
            "seconds": round(result.seconds, 3),
            "settings": result.settings,
            **({"thinking": result.thinking} if result.thinking else {}),
        }
        if result.image is None:
            entry |= {"text": result.text, "complete": result.complete}
            self.results.add(entry)
            return entry
        with writing(path, _ANOTHER_FOLDER, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_companions(line, path)
            # An older image goes first: with this line in the file it would be taken for the new one.
            with suppress(FileNotFoundError):
                path.unlink()
            self.results.add({**entry, "size": list(result.image.size)})
            save_image(result.image, path)
        return {**entry, "size": list(result.image.size)}

    def _write_companions(self, line: ListLine, path: Path) -> None:
        """Writes what a benchmark's layout has beside an image."""
        if self.naming.metadata:
            write_text(path.parents[1] / "metadata.jsonl", json.dumps(line.row, ensure_ascii=False) + "\n")
        if self.naming.source_copy:
            save_image(open_image(line.images[0]), path.with_stem(path.stem + self.naming.source_copy))


def _hash_of(file: Path) -> str:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}): an image file is expected.") from error
