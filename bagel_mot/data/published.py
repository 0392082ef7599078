"""The published configuration of training data: a YAML file with groups, and dataset_info with their folders and files.

Both are read as they are. The Parquet files' own footers say how many row groups there are, so parquet_info files are
not needed and not read.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.dataclasses import dataclass

from bagel_mot.config import Count, Flag, NotNegative, Section, parse
from bagel_mot.data.dataset import DataGroup, Dataset, Mapper
from bagel_mot.data.documents import ImageRules, Opener
from bagel_mot.data.readers.base import Reader
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.parquet import ParquetReader, parquet_files
from bagel_mot.data.remote import AnyPath, place_of
from bagel_mot.data.tasks.chat import Conversation
from bagel_mot.data.tasks.edit import EditSession
from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.data.tasks.t2i import TextToImage
from bagel_mot.errors import DataError, did_you_mean
from bagel_mot.files import read_text
from bagel_mot.images import ImageTransform

TASKS = ("t2i_pretrain", "unified_edit", "vlm_sft")


@dataclass(frozen=True, kw_only=True)
class TransformArgs(Section):
    """The limits of an image transform, by their published names."""

    max_image_size: Count
    min_image_size: Count
    image_stride: Count
    max_pixels: Count = 14 * 14 * 9 * 1024
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std"):
            if set(value := getattr(self, name)) != {0.5}:
                raise ValueError(
                    f"{name} is {list(value)}; it must be 0.5 throughout, which the models were trained with"
                )

    def transform(self) -> ImageTransform:
        return ImageTransform(self.max_image_size, self.min_image_size, self.image_stride, self.max_pixels)


@dataclass(frozen=True, kw_only=True)
class FrameArgs(Section):
    """The choice of a video's frames, by the published names."""

    max_num_frames: int = -1
    min_num_frames: Count = 8
    sample: str = "rand"

    def __post_init__(self) -> None:
        self.sampler()

    def sampler(self) -> FrameSampler | None:
        """The sampler; None if the largest number is left out, with which the published code fails on every video."""
        if self.max_num_frames < 1 and not self.sample.startswith("fps"):
            FrameSampler(self.min_num_frames, self.min_num_frames, self.sample)  # refuses an unknown sample
            return None
        return FrameSampler(self.max_num_frames, self.min_num_frames, self.sample)


@dataclass(frozen=True, kw_only=True)
class GroupArgs(Section):
    """A group of the YAML file, by the published names.

    Attributes:
        task: the published group that it works like, if its own name is another: a task can have several weights.
    """

    dataset_names: tuple[str, ...]
    num_used_data: tuple[Count, ...]
    weight: NotNegative = 0.0
    is_mandatory: Flag = False
    image_transform_args: TransformArgs
    vit_image_transform_args: TransformArgs | None = None
    frame_sampler_args: FrameArgs | None = None
    shuffle_lines: Flag = False
    shuffle_seed: int = 0
    resume_data_status: Flag = True
    task: str | None = None

    def __post_init__(self) -> None:
        if not self.dataset_names:
            raise ValueError("dataset_names is empty; it must name at least one data set")
        if len(self.dataset_names) != len(self.num_used_data):
            raise ValueError(
                f"num_used_data has {len(self.num_used_data)} entries for {len(self.dataset_names)} dataset_names; "
                "there must be one for each"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetArgs(Section):
    """An entry of dataset_info. The numbers of files and samples are documentation, and parquet_info is not needed."""

    data_dir: str
    jsonl_path: str | None = None
    parquet_info_path: Any = None
    json_dir: Any = None
    num_files: Any = None
    num_total_samples: Any = None


# The keys that a task alone has.
_OWN_KEYS = {
    "vit_image_transform_args": "unified_edit",
    "frame_sampler_args": "vlm_sft",
    "shuffle_lines": "vlm_sft",
    "shuffle_seed": "vlm_sft",
}


def read_published(config: Path, dataset_info: Path | None, root: Path, opener: Opener) -> list[DataGroup]:
    """The groups of a published configuration, in the order of the file. No image is opened and no row is read.

    Args:
        config: the YAML file, laid out as the published data/configs/example.yaml; or as NeMo AutoModel's recipes,
            which hold the groups under dataset.grouped_datasets, and dataset_info beside it or its path.
        dataset_info: the JSON or YAML file, or the published dataset_info.py, whose DATASET_INFO is read and not run;
            None if `config` says it.
        root: the folder that the paths in dataset_info are relative to.
        opener: opens images.

    Raises:
        DataError: a file is missing, a key is unknown or unusable, or a group has no data.
    """
    groups, source = _mapping(config), str(dataset_info)
    infos: Any = None
    if isinstance(recipe := groups.get("dataset"), Mapping) and "grouped_datasets" in recipe:
        groups, infos, source = (
            recipe["grouped_datasets"],
            recipe.get("dataset_info"),
            f"{config}: dataset.dataset_info",
        )
        if infos is None and dataset_info is None and (named := recipe.get("dataset_info_path")) is not None:
            dataset_info = root / str(named)
    if dataset_info is not None:
        infos, source = read_dataset_info(dataset_info), str(dataset_info)
    for content, what in ((groups, "groups of data"), (infos, "dataset_info")):
        if not isinstance(content, Mapping):
            raise DataError(f"{config} has no {what}; give data.{'config' if content is groups else 'dataset_info'}")
    found = [
        published_group(name, content, infos, f"{config}: {name}", source, root, opener)
        for name, content in groups.items()
    ]
    if not found:
        raise DataError(f"{config} has no group of data; there can be {', '.join(TASKS)}")
    if sum(group.weight for group in found) <= 0:
        raise DataError(f"{config}: every weight is 0, so nothing can be drawn; give a group a weight above 0")
    return found


def read_dataset_info(path: Path) -> Mapping[str, Any]:
    """The object in a dataset_info file: group → data set → its folders and files.

    Raises:
        DataError: the file is missing or holds something else.
    """
    if path.suffix != ".py":
        return _mapping(path)
    try:
        module = ast.parse(read_text(path, DataError))
        assigned = [
            node.value
            for node in module.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and "DATASET_INFO" in ast.unparse(node).partition("=")[0]
        ]
        content = ast.literal_eval(assigned[-1]) if assigned and assigned[-1] is not None else None
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        raise DataError(f"{path} could not be read: {error}") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path} has no DATASET_INFO that is a plain dictionary; write it as JSON or YAML")
    return content


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        text = read_text(path, DataError)
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except DataError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} could not be read as {'JSON' if path.suffix == '.json' else 'YAML'}: {reason}"
        ) from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}; a mapping from names of groups is expected")
    return content


def published_group(
    name: str, content: Any, infos: Mapping[str, Any], where: str, source: str, root: Path, opener: Opener
) -> DataGroup:
    """One group of a published configuration.

    Args:
        name: the name of the group.
        content: its block of the YAML file.
        infos: the content of dataset_info.
        where, source: the names of the block and of dataset_info in messages.
        root: the folder that the paths in `infos` are relative to.
        opener: opens images.

    Raises:
        DataError: a key is unknown or unusable, or there is no data.
    """
    if not isinstance(content, Mapping):
        raise DataError(f"{where} is {content!r}; a mapping with dataset_names is expected")
    task = str(content.get("task", name))
    if task not in TASKS:
        raise DataError(
            f"{where}: there is no group of this name; {did_you_mean(task, TASKS)} "
            "(a group of another name says by its key task which of them it works like)"
        )
    args = parse(GroupArgs, dict(content), where, DataError)
    for key, owner in _OWN_KEYS.items():
        if key in content and task != owner:
            raise DataError(f"{where}: {key} is a key of {owner}, which {task} has no use for; remove it")
    if task == "unified_edit" and args.vit_image_transform_args is None:
        raise DataError(f"{where}: vit_image_transform_args is missing; edits need the limits of both encoders")
    entries = infos.get(name, infos.get(task))
    if not isinstance(entries, Mapping):
        raise DataError(f"{source} has no group {name}; {did_you_mean(name, infos)}")
    rules = _rules(task, args, opener)
    datasets = []
    for number, (entry, used) in enumerate(zip(args.dataset_names, args.num_used_data, strict=True)):
        if entry not in entries:
            raise DataError(f"{where}: {source} has no data set {entry} in {name}; {did_you_mean(entry, entries)}")
        info = parse(DatasetArgs, entries[entry], f"{source}: {name}.{entry}", DataError)
        if info.jsonl_path is not None and task != "vlm_sft":
            raise DataError(
                f"{source}: {name}.{entry}: jsonl_path is a key of vlm_sft; {task} reads Parquet files alone"
            )
        if info.json_dir is not None:
            raise DataError(
                f"{source}: {name}.{entry}: json_dir is not read; give conversations as jsonl_path, edits as Parquet"
            )
        reader, mapper = _BUILDERS[task](args, info, used, root, f"{source}: {name}.{entry}")
        repeated = args.dataset_names[:number].count(entry)
        unique = f"{name}/{entry}" + (f"#{repeated + 1}" if repeated else "")
        datasets.append(Dataset(unique, reader, mapper, rules))
    return DataGroup(name, tuple(datasets), args.weight, args.is_mandatory, args.resume_data_status)


def _rules(task: str, args: GroupArgs, opener: Opener) -> ImageRules:
    first = args.image_transform_args.transform()
    second = args.vit_image_transform_args
    if task == "vlm_sft":
        return ImageRules(vit=first, vit_of_original=True, opener=opener)
    vit = None if second is None else second.transform()
    return ImageRules(vae=first, vit=vit, vit_of_original=True, opener=opener)


def _files(info: DatasetArgs, used: int, root: Path, where: str) -> list[AnyPath]:
    """The Parquet files that are used: the first ones by name, or all of them again and again up to their number."""
    folder = place_of(info.data_dir, root)
    if not folder.is_dir():
        raise DataError(f"{where}: data_dir is {info.data_dir}, but there is no folder {folder.absolute()}")
    files = parquet_files(folder)
    return (files * -(-used // len(files)))[:used]


def _t2i(args: GroupArgs, info: DatasetArgs, used: int, root: Path, where: str) -> tuple[Reader, Mapper]:
    return ParquetReader(_files(info, used, root, where), ("image", "captions"), by="file"), TextToImage()


def _edit(args: GroupArgs, info: DatasetArgs, used: int, root: Path, where: str) -> tuple[Reader, Mapper]:
    reader = ParquetReader(_files(info, used, root, where), ("image_list", "instruction_list"))
    return reader, EditSession(folder=place_of(info.data_dir, root))


def _chat(args: GroupArgs, info: DatasetArgs, used: int, root: Path, where: str) -> tuple[Reader, Mapper]:
    if info.jsonl_path is None:
        raise DataError(f"{where}: jsonl_path is missing; conversations are the lines of a JSONL file")
    file = place_of(info.jsonl_path, root)
    if not file.is_file():
        raise DataError(f"{where}: jsonl_path is {info.jsonl_path}, but there is no file {file.absolute()}")
    reader = JsonlReader([file], [used], args.shuffle_seed if args.shuffle_lines else None)
    sampler = None if args.frame_sampler_args is None else args.frame_sampler_args.sampler()
    return reader, Conversation(folder=place_of(info.data_dir, root), sampler=sampler)


_BUILDERS: dict[str, Callable[[GroupArgs, DatasetArgs, int, Path, str], tuple[Reader, Mapper]]] = {
    "t2i_pretrain": _t2i,
    "unified_edit": _edit,
    "vlm_sft": _chat,
}
