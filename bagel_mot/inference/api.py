"""`Bagel`: a loaded checkpoint with its engine, its adapters and its sessions."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Self

import torch

from bagel_mot.checkpoint.adapters import read_adapter
from bagel_mot.checkpoint.official import TASKS, Checkpoint
from bagel_mot.errors import BagelError
from bagel_mot.inference.adapters import AdapterPlace, Adapters, LoadedAdapters, named
from bagel_mot.inference.defaults import Defaults, official_defaults, read_defaults
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.graphs import recorder_for
from bagel_mot.inference.loading import OnLoad, compile_experts, find_adapter, load
from bagel_mot.inference.methods import RequestMethods
from bagel_mot.inference.runtime import Runtime
from bagel_mot.inference.session import Session
from bagel_mot.placement.oom import MemoryGuard
from bagel_mot.placement.plan import Plan
from bagel_mot.task import Task
from bagel_mot.threads import Threads


class Bagel(RequestMethods):
    """One model that reads and writes text and images. `Bagel.from_pretrained` makes it.

    Every method takes the settings of `bagel_mot.inference.settings` by name; a list gives one value to each request of
    a batch.

    Args:
        checkpoint: the loaded checkpoint.
        defaults: default settings and image sizes; the official ones if not given.
        compile: runs `torch.compile` on the experts; the first calls then take minutes, the others less.
        graphs: records denoising steps and decoded tokens as CUDA graphs, on one CUDA device that holds all weights.
            Where that fails a warning is logged, and each operation is started by itself.
        memory: says what fits into memory; by default everything does.
        threads: the threads that compute; by default chosen by the size of the model.

    Attributes:
        config: the model's configuration.
        tokenizer: the model's tokenizer.
        engine: runs all requests; `engine.stats` counts what it did.
        defaults: default settings and image sizes of this checkpoint.
        name: the name that it was loaded by, if any.
        plan: the way in which it runs, where that was chosen from several ones.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        defaults: Defaults | None = None,
        compile: bool = False,
        graphs: bool = True,
        memory: MemoryGuard | None = None,
        threads: Threads | None = None,
    ) -> None:
        self._checkpoint: Checkpoint | None = checkpoint
        self.name: str | None = None
        self.plan: Plan | None = None
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.defaults = official_defaults(checkpoint.config) if defaults is None else defaults
        if compile:
            compile_experts(checkpoint.model)
        self.engine = Engine(
            checkpoint.model,
            checkpoint.autoencoder,
            checkpoint.special,
            vocab_size=checkpoint.tokenizer.vocab_size,
            memory=memory,
            threads=threads,
            recorder=recorder_for(checkpoint.model) if graphs else None,
        )
        self.runtime = Runtime(
            engine=self.engine,
            config=checkpoint.config,
            tokenizer=checkpoint.tokenizer,
            special=checkpoint.special,
            defaults=self.defaults,
            tasks=[Task.ASK if name == "understand" else Task(name) for name in checkpoint.tasks],
        )
        self._adapters = LoadedAdapters(self.runtime)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "mini",
        *,
        precision: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        tasks: Collection[str] = TASKS,
        offload: str = "auto",
        memory: int | str | None = None,
        prefer: str = "quality",
        threads: int | None = None,
        compile: bool = False,
        graphs: bool = True,
        progress: OnLoad | None = None,
        adapters: Adapters = (),
    ) -> Bagel:
        """Loads a checkpoint.

        Args:
            name: "mini" (the embedded model), a folder in the official layout or a file with weights in one, or a hub
                id such as "ByteDance-Seed/BAGEL-7B-MoT", which is downloaded once.
            precision: "float32", "bfloat16", "float16"; "int8", "int8-dynamic", "fp8", "fp8-dynamic", "int4" or "nf4"
                for the decoder's big matrices, which are rounded while they are read; or "auto": bfloat16 on
                accelerators and for checkpoints above 1 GB (on GPUs without bfloat16 float32, above 1 GB float16). More
                parts may follow, as in "int8,head=int8,vit=int8". The autoencoder follows a
                model in bfloat16 where that is faster, unless it says "autoencoder=float32". See
                `bagel_mot.checkpoint.precision`.
            device: "cpu", "cuda", "cuda:1", "mps", or "auto": the best there is.
            tasks: the tasks that the model is for: "generate", "edit", "understand". ("understand",) leaves out the gen
                expert, nearly half of all weights, and the autoencoder; ("generate",) the vision transformer.
            offload: the place of layers that find no room on the device: "cpu", main memory; "disk", the mapped file;
                "none"; or "auto". With "cpu" or "disk" as many layers are loaded for each pass as have to be.
            memory: bytes, or a text such as "12GB", that may be taken of each accelerator (of main memory on the CPU);
                the free memory less a margin if not given.
            prefer: the order of ways of running, where several fit: "quality" takes the fastest that loses no
                accuracy, "speed" the fastest, "memory" the one that takes the least memory.
            threads: CPU threads that compute; by default chosen by the size of the model and the cores that the process
                may use (`bagel_mot.threads`).
            compile, graphs: see `Bagel`. Of a plan that was chosen, graphs are part where they find room.
            progress: called with "downloading" or "loading", the bytes done and the bytes in all, and with "compiling"
                and 0 or 1 of 1 where code is compiled for this machine, once. What it raises ends the loading; a
                download is continued the next time.
            adapters: folders of adapters (or of runs that train them) or hub ids, or these by name; all are on. See
                `set_adapters`.

        For checkpoints above 1 GB, and for all of them with another preference than quality, "auto" is chosen so that
        the model fits (`bagel_mot.placement`); attribute `plan` says what was chosen.

        Raises:
            CheckpointError: there is no such checkpoint or adapter, it is damaged, or the adapter is of another model.
            DeviceError: the device or precision is unknown or not available, or there is not enough memory.
        """
        loaded = load(
            name,
            precision,
            device,
            tasks,
            offload=offload,
            memory=memory,
            prefer=prefer,
            threads=threads,
            prepack=not compile,
            progress=progress,
            adapters=named(adapters),
        )
        defaults = read_defaults(loaded.folder, loaded.checkpoint.config)
        bagel = cls(
            loaded.checkpoint,
            defaults=defaults,
            compile=compile,
            graphs=graphs and (loaded.plan is None or loaded.plan.graphs),
            memory=loaded.memory,
            threads=loaded.threads,
        )
        bagel.name, bagel.plan = os.fspath(name), loaded.plan
        if loaded.adapters:
            bagel._adapters.add(loaded.adapters)
        return bagel

    # ------------------------------------------------------------------------------------------------------- adapters

    @property
    def adapters(self) -> dict[str, float]:
        """The adapters that are loaded, by name, with their strengths; those at 0 are off."""
        return dict(self._adapters.strengths)

    def set_adapters(self, strengths: Mapping[str, float]) -> None:
        """Sets which adapters change what the model does, and by how much: 1 is as they were trained, 0 is off, and
        several add up. Those that are not named are off. Sessions go on with the new ones; what they have read is read
        again when they are used next.

        Raises:
            SettingError: a name is unknown, or a strength is not a number.
            BagelError: requests are at work.
        """
        self._adapters.set(strengths)

    def load_adapter(self, place: AdapterPlace, *, name: str | None = None) -> str:
        """Loads one more adapter, which is on; returns its name.

        Args:
            place: its folder, that of a run that trains one, or a hub id.
            name: its name; by default that of the folder.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of another model.
            SettingError: there is one of this name.
            BagelError: requests are at work.
        """
        ((chosen, where),) = named([place] if name is None else {name: place}).items()
        self._adapters.add({chosen: read_adapter(find_adapter(where), self.config)})
        return chosen

    def unload_adapter(self, name: str) -> None:
        """Takes an adapter away and frees its memory. Errors as `set_adapters`."""
        self._adapters.remove(name)

    def close(self) -> None:
        """Cancels all requests, lets go of the model and frees its memory. It cannot be used afterwards, nor can its
        sessions. `with Bagel.from_pretrained(…) as bagel:` closes it at the end.
        """
        self.engine.close()
        self.runtime.forget()
        self._checkpoint = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "" if self.name is None else f"{self.name!r}, "
        if self._checkpoint is None:
            return f"Bagel({name}closed)"
        return f"Bagel({name}device={str(self.device)!r}, precision={self.checkpoint.precision.name!r})"

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded checkpoint.

        Raises:
            BagelError: it was closed.
        """
        if self._checkpoint is None:
            raise BagelError("this model was closed: load it again with Bagel.from_pretrained.")
        return self._checkpoint

    @property
    def device(self) -> torch.device:
        return self.checkpoint.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.checkpoint.model.dtype

    # ------------------------------------------------------------------------------------------------------- sessions

    def session(self, *, think: bool = False, understanding: bool = False) -> Session:
        """An interleaved conversation whose cache is kept between turns.

        Args:
            think: puts the system prompt for thinking first, and thinks before each image and answer.
            understanding: images are only asked about, never drawn; they then cost half the tokens.
        """
        return Session(self, think=think, understanding=understanding)

    def load_session(self, folder: str | os.PathLike[str]) -> Session:
        """A session that `Session.save` wrote."""
        return Session.load(self, folder)

    # -------------------------------------------------------------------------------------------------------- prompts

    def hint(self, text: str) -> str | None:
        """One sentence if a prompt has words that this checkpoint has never read, as its `bagel_scope.yaml` says;
        None otherwise, for checkpoints that do not say, and where an adapter is on, which may have read others. Nothing
        is refused for it.
        """
        scope = self.runtime.defaults.scope
        return None if scope is None or any(self.adapters.values()) else scope.hint(text)

    def share_prefixes(self, max_tokens: int) -> None:
        """Keeps what requests begin with (system prompt, image) for requests to come; 0 ends it.

        Args:
            max_tokens: tokens of cache that are kept, at most.
        """
        self.runtime.prefixes.resize(max_tokens)
