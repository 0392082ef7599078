"""The queue in front of one model, for the server and the page alike.

First come, first served: a request that finds no room waits for those before it, one that could never run is refused,
and so is any while too many are waiting. Requests are worked on together, by the service's own thread (`start`), or, as
those of sessions, by the threads that wait for their results in a `place`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from bagel_mot.errors import BagelError, SettingError
from bagel_mot.images import ImageSource, open_image
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.prepare import Preparer, task_of, with_seeds
from bagel_mot.inference.request import NOBODY, ImageInput, Listener, Request
from bagel_mot.inference.result import Result
from bagel_mot.inference.settings import MAX_SEED, GenerationSettings
from bagel_mot.inference.steps.respond import respond
from bagel_mot.placement.estimate import MARGIN, Capacity, capacity
from bagel_mot.placement.system_memory import free_memory
from bagel_mot.serving.driver import Driver
from bagel_mot.serving.limits import BusyError, ClosedError, InputError, LimitError, Limits, clean_text
from bagel_mot.task import Task

__all__ = ["BusyError", "ClosedError", "LimitError", "Limits", "Listen", "Service", "SubmittedBatch"]

Listen = Callable[[int, Request], Listener]
"""Chooses the listener for the result of a number, from its request."""
_LEAST_RETRY, _MOST_RETRY = 1, 120  # seconds
_TOKENS = {True: "max_think_tokens", False: "max_new_tokens"}  # by whether the task draws


_services: weakref.WeakKeyDictionary[Bagel, weakref.ref[Service]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class SubmittedBatch:
    """Requests at work that differ in their seeds alone.

    Attributes:
        tickets: one for each result; cancel those that are no longer wanted.
        request: the first request.
    """

    tickets: list[Ticket[Result]]
    request: Request

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()


class Service:
    """One model and its queue. Safe to use from several threads.

    Args:
        bagel: the model. From now on its requests' beginnings are kept for others, and the engine's batches are bounded
            by the memory there is.
        limits: the limits of each request.
        memory: bytes that requests may take; the free memory less a margin if not given.

    Attributes:
        capacity: the requests that the memory holds.
        present: the number of requests at work and waiting.
        open: whether requests are taken.
        stopped: whether the model is free for another service.

    Raises:
        SettingError: the model has a service that is not stopped.
    """

    def __init__(self, bagel: Bagel, *, limits: Limits | None = None, memory: int | None = None) -> None:
        other = _services.get(bagel)
        if other is not None and (service := other()) is not None and not service.stopped:
            raise SettingError("this model has a service already: use that one, or stop it first.")
        self.bagel = bagel
        self.limits = limits or Limits()
        usable = int(free_memory(bagel.device) * (1 - MARGIN)) if memory is None else memory
        image_dtype, on_cpu = bagel.checkpoint.autoencoder.dtype, bagel.device.type == "cpu"
        self.capacity: Capacity = capacity(bagel.config, usable, bagel.dtype, image_dtype, on_cpu=on_cpu)
        bagel.share_prefixes(self.capacity.prefix_tokens)
        engine = bagel.engine
        engine.max_active_cost = self.capacity.cache_tokens
        engine.max_step_tokens = self.capacity.step_tokens
        engine.max_step_pixels = max(1, self.capacity.step_pixels)
        self._lock = threading.RLock()
        self.present = 0
        self.open: bool = True
        self.stopped: bool = False
        self._holders: list[Callable[[], int]] = []
        self._durations: deque[float] = deque(maxlen=32)  # seconds of the last requests
        self._driver = Driver(engine)
        _services[bagel] = weakref.ref(self)

    # ------------------------------------------------------------------------------------------------------- requests

    def start(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: str = "image",
        n: int = 1,
        listen: Listen | None = None,
        **settings: Any,
    ) -> SubmittedBatch:
        """Takes in a request for `n` results and returns at once; the service's own thread works on it. Each result
        takes a place in the queue and gives it back when it is there, or cancelled.

        Args:
            inputs, output, **settings: see `Bagel.interleave`.
            n: results, with seeds counting up from the one given.
            listen: chooses the listener for the result of that number.

        Raises:
            BusyError: try again later.
            LimitError: it asks for more than the service gives.
            BagelError: it cannot be run; nothing was.
        """
        most = min(self.limits.n, self.limits.queue)
        if not 1 <= n <= most:
            raise LimitError(f"n is {n}: it must be from 1 to {most}.", "n")
        self._take(n)
        began, places = time.monotonic(), n  # places that no ticket gives back yet
        tickets: list[Ticket[Result]] = []
        try:
            request = self.check(inputs, output, settings)
            given = request.settings.seed
            if given is not None and given + n - 1 > MAX_SEED:
                raise LimitError(f"seed is {given}: with n {n} the last one would be above {MAX_SEED}.", "seed")
            for index, own in enumerate(with_seeds(request, n)):
                listener = NOBODY if listen is None else listen(index, own)
                steps = respond(self.bagel.runtime, own, listener)
                tickets.append(self._driver.submit(steps, own.max_result_tokens, own.prompt))
                places -= 1
                tickets[-1].add_done_callback(partial(self._give_back, began))
            return SubmittedBatch(tickets, request)
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        finally:
            with self._lock:
                self.present -= places

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, held as long as a request takes: for requests made in other ways, such as a session's.

        Raises:
            BusyError: there is none.
        """
        began = time.monotonic()
        self._take(1)
        try:
            yield
        finally:
            self._give_back(began)

    def check_place(self, count: int = 1) -> None:
        """Checks that places in the queue are free.

        Raises:
            ClosedError: the service is shutting down.
            BusyError: fewer than `count` places are free now.
        """
        if not self.open:
            raise ClosedError("the service is shutting down: try again later.", _LEAST_RETRY)
        if self.present + count > self.limits.queue:
            asked = "" if count == 1 else f", and {count} are asked for"
            raise BusyError(
                f"{self.present} of {self.limits.queue} places are taken by requests at work or waiting{asked}: "
                "try again later.",
                self._retry_after(),
            )

    def _take(self, count: int) -> None:
        with self._lock:
            self.check_place(count)
            self.present += count

    def _give_back(self, began: float, _: object = None) -> None:
        with self._lock:
            self._durations.append(time.monotonic() - began)
            self.present -= 1

    def count_sessions(self, tokens: Callable[[], int]) -> None:
        """Adds a function that tells how many tokens of cache sessions keep between their turns: requests have the room
        that these leave.
        """
        self._holders.append(tokens)
        self.bagel.engine.memory.holders.append(tokens)

    @property
    def session_tokens(self) -> int:
        """Tokens of cache that sessions keep between their turns."""
        return self.bagel.engine.memory.idle_tokens

    def check(self, inputs: Sequence[str | ImageSource], output: str, settings: Mapping[str, Any]) -> Request:
        """Prepares a request, and checks it against the model, the limits and the memory.

        Raises:
            LimitError, BagelError: it cannot be run.
            BusyError: there is no room beside what sessions keep now.
        """
        self._check_counts(inputs)
        task = task_of(inputs, output)
        prepare = Preparer(self.bagel.runtime, max_pixels=self.limits.image_pixels)
        prepared = [] if inputs else [*prepare.inputs((), task)]
        for number, one in enumerate(inputs):
            try:
                prepared += prepare.inputs([clean_text(one) if isinstance(one, str) else one], task, settings)
            except BagelError as error:
                raise InputError(str(error), number) from error
        request = prepare.request(task, tuple(prepared), self._with_default_tokens(task, settings))
        self.check_request(request)
        cost = request.max_cache_tokens
        if cost > self.capacity.cache_tokens:
            raise LimitError(
                f"the request needs {cost} tokens of cache, this service has memory for {self.capacity.cache_tokens}: "
                "shorten it, or ask for a smaller picture or fewer tokens."
            )
        held = self.session_tokens
        if cost > self.capacity.cache_tokens - held:
            raise BusyError(
                f"the request needs {cost} tokens of cache, and open conversations hold {held} of "
                f"{self.capacity.cache_tokens}: try again later.",
                self._retry_after(),
            )
        return request

    def _with_default_tokens(self, task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with a limit of tokens, where none is given, that this service takes."""
        name = _TOKENS[task.draws]
        default = int(self.bagel.defaults.of(task).get(name, getattr(GenerationSettings(), name)))
        if settings.get(name) is not None:
            return dict(settings)
        return {**settings, name: min(default, self.limits.new_tokens)}

    def check_request(self, request: Request) -> None:
        """Checks that a request asks for no more than the service gives.

        Raises:
            LimitError: it asks for more.
        """
        settings, most_tokens, most_pixels = request.settings, self.capacity.step_tokens, self.capacity.step_pixels
        if request.size is not None:
            if settings.num_timesteps > self.limits.timesteps:
                raise LimitError(
                    f"num_timesteps is {settings.num_timesteps}: this service takes at most {self.limits.timesteps}.",
                    "num_timesteps",
                )
            width, height = request.size
            if width * height > most_pixels:
                raise LimitError(
                    f"a picture of {width}×{height} has {width * height} pixels, this service has memory for "
                    f"{most_pixels}: ask for a smaller one.",
                    "size",
                )
        images = [one for one in request.inputs if isinstance(one, ImageInput)]
        for image in images if request.task.draws else ():
            width, height = image.image.size
            if width * height > most_pixels:
                raise LimitError(
                    f"a picture given is read at {width}×{height}, {width * height} pixels, this service has memory "
                    f"for {most_pixels}: give a smaller one."
                )
        # Texts are read in parts where they are long; an image has to be read, and drawn, in one pass.
        tokens = max([request.noised_tokens, *(max(image.vae_tokens, image.vit_tokens) for image in images)])
        if tokens > most_tokens:
            raise LimitError(
                f"the request needs a pass of {tokens} tokens, this service has memory for {most_tokens}: "
                "give or ask for a smaller picture."
            )
        if request.max_text_tokens > self.limits.new_tokens:
            name = _TOKENS[request.task.draws]
            raise LimitError(
                f"{name} is {request.max_text_tokens}: this service writes at most {self.limits.new_tokens} tokens.",
                name,
            )
        # Every token is compared with all of them, while everybody waits.
        characters, most = sum(map(len, settings.stop)), self.limits.stop_characters
        if characters > most:
            raise LimitError(f"the stop texts have {characters} characters: this service takes at most {most}.", "stop")

    def check_images(self, count: int) -> None:
        """Checks how many images are given.

        Raises:
            LimitError: they are too many.
        """
        if count > self.limits.images:
            raise LimitError(f"there are {count} pictures: this service takes at most {self.limits.images}.")

    def _check_counts(self, inputs: Sequence[str | ImageSource]) -> None:
        if len(inputs) > self.limits.items:
            raise LimitError(
                f"there are {len(inputs)} texts and pictures: this service takes at most {self.limits.items}."
            )
        texts = [item for item in inputs if isinstance(item, str)]
        self.check_images(len(inputs) - len(texts))
        characters = sum(map(len, texts))
        if characters > self.limits.text_characters:
            raise LimitError(
                f"the texts have {characters} characters: this service takes at most {self.limits.text_characters}."
            )

    def reduced(self, source: ImageSource) -> Image.Image:
        """An image as the model will see it, for conversations, which would else keep it at full size.

        Raises:
            ImageError: it cannot be used, or has more pixels than the service takes.
        """
        image = open_image(source, self.limits.image_pixels)
        transform = self.bagel.defaults.vae_transform
        resized = transform.resize(image)
        # The model resizes what it is given, which must change nothing any more.
        return resized if transform.size(*resized.size) == resized.size else image

    # ---------------------------------------------------------------------------------------------------- its state

    def warm_up(self) -> None:
        """Does beforehand what would make the first requests wait."""
        _ = self.bagel.runtime.previewer

    def _retry_after(self) -> int:
        """Seconds until a place is likely to be free: the queue's usual pace."""
        with self._lock:
            durations = sorted(self._durations)
        if not durations:
            return _LEAST_RETRY
        usual = durations[len(durations) // 2]
        return round(min(max(usual / 2, _LEAST_RETRY), _MOST_RETRY))

    def close(self) -> None:
        """Takes no more requests; those at work go on."""
        with self._lock:
            self.open = False

    def stop(self) -> None:
        """Closes, ends the service's own thread once it has done what it was given, and lets go of the model."""
        self.close()
        self._driver.stop()
        with self._lock:
            holders, self._holders, self.stopped = self._holders, [], True
        for tokens in holders:
            self.bagel.engine.memory.holders.remove(tokens)
        self.bagel.share_prefixes(0)
