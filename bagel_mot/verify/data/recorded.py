"""A set of recorded data on disk: read, and checked to hold nothing that is not known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bagel_mot.data.dataset import DataGroup, Dataset
from bagel_mot.data.documents import OPENERS, Dropout, SampleBuilder
from bagel_mot.data.published import published_group, read_published
from bagel_mot.data.readers.base import Row
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.parquet import ParquetReader
from bagel_mot.errors import DataError
from bagel_mot.files import read_json, read_text
from bagel_mot.images import VAE_TRANSFORM, VIT_TRANSFORM
from bagel_mot.tokenizer import Tokenizer
from bagel_mot.verify.records import Case, Comparison

KINDS = (
    *("row", "picture", "read", "pack", "run", "plan", "shard", "resume", "resume_run", "frames", "groups", "config"),
    "limits",
)
CONTRACT, QUIRK, FAULT = MARKS = ("contract", "quirk", "fault")
FORMAT = 1
STRIDE, PATCH = 16, 14  # pixels of a side of a latent token, and of a ViT patch
_KEYS = {"format", "tokenizer", "special", "configs", "dataset_info", "cases"}
_ALL_LINES = 1_000_000


def is_data_set(folder: Path) -> bool:
    """Whether a folder holds recorded data, rather than recorded results of a model."""
    try:
        content = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "dataset_info" in content


class RecordedData:
    """The cases, the tensors and the data of a set.

    Attributes:
        folder: the set; all its paths are relative to it.
        cases: the entries of cases.json, in order.
        tensors: the recorded tensors by name.
        seen: the names of the tensors that were compared.
        outcomes: the outcomes of rows that were worked out already, by their place and opener.
        tokenizer: the recorded model's tokenizer.

    Raises:
        DataError: a file is missing or damaged, or a kind, mark or file is not known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._content = read_json(folder / "cases.json", DataError)
        if self._content.get("format") != FORMAT:
            raise DataError(
                f"{folder / 'cases.json'} has format {self._content.get('format')!r}; format {FORMAT} is known"
            )
        if self._content.keys() != _KEYS:
            odd = ", ".join(sorted(self._content.keys() ^ _KEYS))
            raise DataError(f"{folder / 'cases.json'} lacks, or has besides the known ones, the keys {odd}")
        self.cases: list[Case] = self._content["cases"]
        self._check_cases()
        try:
            self.tensors: dict[str, Tensor] = load_file(folder / "expected.safetensors")
        except (OSError, SafetensorError) as error:
            path = folder / "expected.safetensors"
            raise DataError(f"{path} could not be read as safetensors (missing or damaged?): {error}") from error
        self.seen: set[str] = set()
        self.outcomes: dict[tuple[Any, ...], Any] = {}
        self._datasets: dict[tuple[str, ...], Dataset] = {}
        self.tokenizer = Tokenizer.from_folder(folder / self._content["tokenizer"])
        self._check_files()

    def by_name(self, name: str) -> Case:
        """The case of a name."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Case]:
        return {case["name"]: case for case in self.cases}

    def tensor(self, key: str) -> Tensor:
        """A recorded tensor, compared from now on.

        Raises:
            DataError: it was not recorded.
        """
        if key not in self.tensors:
            raise DataError(f"expected.safetensors has no {key}")
        self.seen.add(key)
        return self.tensors[key]

    def check_special(self) -> list[Comparison]:
        """Compares the ids of the special tokens."""
        special, want = self.tokenizer.special, self._content["special"]
        got = {
            "bos_token_id": special.bos,
            "eos_token_id": special.eos,
            "start_of_image": special.start_of_image,
            "end_of_image": special.end_of_image,
        }
        return [Comparison("special", "ids", float(got != want), got == want, "" if got == want else f"{got}")]

    def groups(self, config: str = "small", opener: str = "published") -> dict[str, DataGroup]:
        """The groups of one of the set's configurations, by name; images are opened as `opener` says."""
        files = self.folder / self._content["configs"][config], self.folder / self._content["dataset_info"]
        return {group.name: group for group in read_published(*files, self.folder, OPENERS[opener])}

    def dataset(self, group: str, name: str, config: str = "small", opener: str = "published") -> Dataset:
        """A data set of a group, whole, with the group's settings in a configuration."""
        key = group, name, config, opener
        if key not in self._datasets:
            info = self.dataset_info[group][name]
            files = len(list((self.folder / info["data_dir"]).glob("*.parquet")))
            used = _ALL_LINES if "jsonl_path" in info else files
            settings = {**self.configuration(config)[group], "dataset_names": [name], "num_used_data": [used]}
            names = f"{config}: {group}", self._content["dataset_info"]
            found = published_group(group, settings, self.dataset_info, *names, self.folder, OPENERS[opener])
            (self._datasets[key],) = found.datasets
        return self._datasets[key]

    def configuration(self, config: str) -> dict[str, Any]:
        """The content of a configuration file."""
        content: dict[str, Any] = yaml.safe_load(read_text(self.folder / self._content["configs"][config], DataError))
        return content

    @cached_property
    def dataset_info(self) -> dict[str, Any]:
        return read_json(self.folder / self._content["dataset_info"], DataError)

    def row(self, case: Case) -> Row:
        """The row that a case of the kind `row` is about, read from its file."""
        file = self.folder / case["file"]
        if "row_group" in case:
            reader = ParquetReader([file])
            return reader.row(case["row_group"], case["row"])
        return JsonlReader([file]).row(0, case["row"])

    def builder(self, dropout: Mapping[str, float] | None = None) -> SampleBuilder:
        """Makes samples with given probabilities of dropout, by default none; sizes come from the data sets."""
        chances = Dropout(**{"text": 0.0, "vit": 0.0, "vae": 0.0, **(dropout or {})})
        return SampleBuilder(self.tokenizer, VAE_TRANSFORM, VIT_TRANSFORM, STRIDE, PATCH, chances)

    def _check_cases(self) -> None:
        where = self.folder / "cases.json"
        if not isinstance(self.cases, list) or not self.cases:
            raise DataError(f"{where} has no list of cases under the key 'cases'")
        names: set[str] = set()
        for number, case in enumerate(self.cases):
            if not isinstance(case, dict) or not {"name", "kind", "mark"} <= case.keys():
                raise DataError(f"{where}: case number {number} has no name, no kind or no mark")
            if case["kind"] not in KINDS:
                raise DataError(f"{where}: {case['name']} is of kind {case['kind']!r}; there are {', '.join(KINDS)}")
            if case["name"] in names:
                raise DataError(f"{where}: there are two cases of the name {case['name']!r}")
            names.add(case["name"])
            for marked in (case, *(o for o in case.get("outcomes", ()) if "mark" in o)):
                if marked["mark"] not in MARKS:
                    raise DataError(
                        f"{where}: {case['name']} is marked {marked['mark']!r}; there are {', '.join(MARKS)}"
                    )

    def _check_files(self) -> None:
        """Refuses a file that nothing refers to: it would be recorded and never compared."""
        known = set(self._known_files())
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            if file not in known:
                raise DataError(f"{file} is a file that nothing in cases.json or dataset_info refers to; remove it")
        for file in sorted(known):
            if not file.is_file():
                raise DataError(f"{file} is missing; the set refers to it")

    def _known_files(self) -> Iterable[Path]:
        content = self._content
        for name in ("README.md", "cases.json", "expected.safetensors", content["dataset_info"]):
            yield self.folder / name
        for name in content["configs"].values():
            yield self.folder / name
        for name in ("merges.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json"):
            yield self.folder / content["tokenizer"] / name
        for case in self.cases:
            if isinstance(case.get("file"), str):
                yield self.folder / case["file"]
        for group in self.dataset_info.values():
            for info in group.values():
                yield from self._files_of(info)

    def _files_of(self, info: Mapping[str, Any]) -> Iterator[Path]:
        for key in ("jsonl_path", "parquet_info_path"):
            if key in info:
                yield self.folder / info[key]
        for file in (self.folder / info["data_dir"]).rglob("*"):
            if file.is_file() and ("jsonl_path" in info or file.suffix == ".parquet"):
                yield file
