"""The queue in front of one model, for the server and the page alike.

First come, first served: a request that finds no room waits for those before it, one that could never run is refused,
and so is any while too many are waiting. Requests are worked on together, by the service's own thread (`start`), or, as
those of sessions, by the threads that wait for their results in a `place`.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from bagel_mot.images import ImageSource, open_image
from bagel_mot.inference.api import Bagel, task_of
from bagel_mot.inference.requests import Item, tokens_of
from bagel_mot.inference.result import Result
from bagel_mot.inference.settings import MAX_SEED, GenerationSettings, Task
from bagel_mot.inference.tasks import Media, Order, noised_tokens, one_shot, system_prompt
from bagel_mot.placement.estimate import MARGIN, Capacity, capacity
from bagel_mot.placement.system_memory import free_memory
from bagel_mot.serving.driver import Driver, Job
from bagel_mot.serving.limits import BusyError, ClosedError, LimitError, Limits, without_special_tokens

__all__ = [
    "BusyError",
    "Callbacks",
    "ClosedError",
    "LimitError",
    "Limits",
    "Service",
    "Started",
    "TokenCount",
]

_LEAST_RETRY, _MOST_RETRY = 1, 120  # seconds


@dataclass(frozen=True)
class Callbacks:
    """Whom to tell on the way; see `Bagel.submit`. They are called from whichever thread drives the engine."""

    on_step: Callable[[int, int], None] | None = None
    on_preview: Callable[[Image.Image], None] | None = None
    on_text: Callable[[str], None] | None = None


@dataclass(frozen=True)
class TokenCount:
    """Tokens by what they stand for, the markers of texts and images included."""

    text: int = 0
    image: int = 0

    @property
    def total(self) -> int:
        return self.text + self.image


@dataclass(frozen=True)
class Started:
    """Requests at work that differ in their seeds alone.

    Attributes:
        jobs: one for each result; cancel those that are no longer wanted.
        order: of the first.
        prompt: tokens that each of them reads before it writes or draws.
    """

    jobs: list[Job[Result]]
    order: Order
    prompt: TokenCount

    def cancel(self) -> None:
        for job in self.jobs:
            job.cancel()


class Service:
    """One model and its queue. Safe to use from several threads.

    Attributes:
        bagel: the model.
        limits: of each request.
        capacity: what the memory holds.
    """

    def __init__(self, bagel: Bagel, *, limits: Limits | None = None, memory: int | None = None) -> None:
        """
        Args:
            bagel: the model. From now on its requests share what they begin with, and the engine's passes are bounded
                by the memory there is: by what the last service made of it says, so make one.
            limits: of each request.
            memory: bytes that requests may take; most of what is free if not given.
        """
        self.bagel = bagel
        self.limits = limits or Limits()
        usable = int(free_memory(bagel.device) * (1 - MARGIN)) if memory is None else memory
        image_dtype, on_cpu = next(bagel.checkpoint.autoencoder.parameters()).dtype, bagel.device.type == "cpu"
        self.capacity: Capacity = capacity(bagel.config, usable, bagel.dtype, image_dtype, on_cpu=on_cpu)
        bagel.share_prefixes(self.capacity.prefix_tokens)
        engine = bagel.engine
        engine.max_active_cost = self.capacity.cache_tokens
        engine.max_step_tokens = self.capacity.step_tokens
        engine.max_step_pixels = max(1, self.capacity.step_pixels)
        self._lock = threading.Lock()
        self._present = 0  # requests submitted and not over
        self._closed = False
        self._empty = threading.Condition(self._lock)
        self._durations: deque[float] = deque(maxlen=32)  # seconds of the last requests
        self._driver = Driver(engine)
        self._sessions: list[Callable[[], int]] = []
        engine.idle_cost = lambda: self.session_tokens

    # ------------------------------------------------------------------------------------------------------- requests

    def start(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: Media = "image",
        n: int = 1,
        listen: Callable[[int, Order], Callbacks] | None = None,
        **settings: Any,
    ) -> Started:
        """Takes in a request for `n` results and returns at once; the service's own thread works on it. Each result
        takes a place in the queue and gives it back when it is there, or cancelled.

        Args:
            inputs, output, **settings: as in `Bagel.interleave`.
            n: results, with seeds counting up from the one given.
            listen: says whom to tell on the way, for the result of that number.

        Raises:
            BusyError: try again later.
            LimitError: it asks for more than the service gives.
            BagelError: it cannot be run; nothing was.
        """
        self.check_n(n)
        self._take(n)
        began, places = time.monotonic(), n  # places that no job gives back yet
        jobs: list[Job[Result]] = []
        try:
            items, order = self.check(inputs, output, settings, Callbacks())
            given = order.settings.seed
            if given is not None and given + n - 1 > MAX_SEED:
                raise LimitError(f"seed is {given}: with n {n} the last one would be above {MAX_SEED}.")
            for index in range(n):
                seed = order.seed + index if given is not None or not index else secrets.randbits(32)
                told = listen(index, order) if listen is not None else Callbacks()
                own = dataclasses.replace(
                    order, seed=seed, on_step=told.on_step, on_preview=told.on_preview, on_text=told.on_text
                )
                request = one_shot(self.bagel.runtime, items, output, own)
                jobs.append(self._driver.submit(request, self.bagel.cost(items, output, own)))
                places -= 1
                jobs[-1].future.add_done_callback(partial(self._give_back_after, began))
            return Started(jobs, order, self.count(items, output, order))
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        finally:
            self._give_back(places)

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
            self._give_back_after(began)

    def check_place(self, count: int = 1) -> None:
        """
        Raises:
            ClosedError: the service is shutting down.
            BusyError: fewer than `count` places are free now.
        """
        if self._closed:
            raise ClosedError("the service is shutting down: try again later.", _LEAST_RETRY)
        if self._present + count > self.limits.queue:
            asked = "" if count == 1 else f", and {count} are asked for"
            raise BusyError(
                f"{self._present} of {self.limits.queue} places are taken by requests at work or waiting{asked}: "
                "try again later.",
                self._retry_after(),
            )

    def _take(self, count: int) -> None:
        with self._lock:
            self.check_place(count)
            self._present += count

    def _give_back(self, count: int) -> None:
        with self._lock:
            self._present -= count
            self._empty.notify_all()

    def _give_back_after(self, began: float, _: object = None) -> None:
        self._durations.append(time.monotonic() - began)
        self._give_back(1)

    def count_sessions(self, tokens: Callable[[], int]) -> None:
        """From now on requests have the room that sessions leave which keep so many tokens between their turns."""
        self._sessions.append(tokens)

    @property
    def session_tokens(self) -> int:
        """Of cache, that sessions keep between their turns."""
        return sum(tokens() for tokens in self._sessions)

    def check(
        self, inputs: Sequence[str | ImageSource], output: Media, settings: dict[str, Any], callbacks: Callbacks
    ) -> tuple[list[Item], Order]:
        """Checks a request against the model, the limits and the memory.

        Raises:
            LimitError, BagelError: it cannot be run.
            BusyError: there is no room beside what sessions keep now.
        """
        self._check_counts(inputs)
        inputs = [without_special_tokens(item) if isinstance(item, str) else self.reduced(item) for item in inputs]
        given = dict(settings)
        name = "max_new_tokens" if output == "text" else "max_think_tokens"
        if given.get(name) is None:
            given[name] = self._default_tokens(name, task_of(inputs, output))
        items, order = self.bagel.prepare(
            inputs,
            output,
            given,
            on_step=callbacks.on_step,
            on_preview=callbacks.on_preview,
            on_text=callbacks.on_text,
        )
        self.check_order(order)
        cost = self.bagel.cost(items, output, order)
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
        self._check_passes(items, output, order)
        return items, order

    def _check_passes(self, items: Sequence[Item], output: Media, order: Order) -> None:
        """
        Raises:
            LimitError: a pass that cannot be divided is larger than the memory holds.
        """
        runtime = self.bagel.runtime
        # What is given is read in one pass, and so is what was written, where something follows it.
        read = max(tokens_of(runtime, items, latents=output == "image"), order.most_text)
        tokens = max(read, noised_tokens(runtime, order))
        most_tokens, most_pixels = self.capacity.step_tokens, self.capacity.step_pixels
        if tokens > most_tokens:
            raise LimitError(
                f"the request needs a pass of {tokens} tokens, this service has memory for {most_tokens}: "
                "shorten it, or ask for a smaller picture or fewer tokens."
            )
        if output == "text":
            return
        for _, content in items:
            width, height = (0, 0) if isinstance(content, str) else runtime.vae_transform.size(*content.size)
            if width * height > most_pixels:
                raise LimitError(
                    f"a picture given is read at {width}×{height}, {width * height} pixels, this service has memory "
                    f"for {most_pixels}: give a smaller one."
                )

    def check_order(self, order: Order) -> None:
        """
        Raises:
            LimitError: what is to be generated is more than the service gives.
        """
        settings: GenerationSettings = order.settings
        if order.size is not None:
            if settings.num_timesteps > self.limits.timesteps:
                raise LimitError(
                    f"num_timesteps is {settings.num_timesteps}: this service takes at most {self.limits.timesteps}."
                )
            pixels = order.size[0] * order.size[1]
            if pixels > self.capacity.step_pixels:
                raise LimitError(
                    f"a picture of {order.size[0]}×{order.size[1]} has {pixels} pixels, this service has memory for "
                    f"{self.capacity.step_pixels}: ask for a smaller one."
                )
        if order.most_text > self.limits.new_tokens:
            raise LimitError(
                f"{order.most_text} tokens of text are asked for: this service writes at most {self.limits.new_tokens}."
            )
        # Every token is compared with all of them, while everybody waits.
        characters, most = sum(map(len, settings.stop)), self.limits.stop_characters
        if characters > most:
            raise LimitError(f"the stop texts have {characters} characters: this service takes at most {most}.")

    def check_n(self, n: int) -> None:
        """
        Raises:
            LimitError: there are too many results asked for.
        """
        most = min(self.limits.n, self.limits.queue)
        if not 1 <= n <= most:
            raise LimitError(f"n is {n}: it must be from 1 to {most}.")

    def check_images(self, count: int) -> None:
        """
        Raises:
            LimitError: there are too many images given.
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
        """An image as the model will see it: those of waiting requests would else be kept at full size, and resized by
        the thread that everybody waits for.

        Raises:
            ImageError: it cannot be used, or has more pixels than the service takes.
        """
        image = open_image(source, self.limits.image_pixels)
        transform = self.bagel.runtime.vae_transform
        size = transform.size(*image.size)
        # The model resizes what it is given, which must change nothing any more.
        return transform.resize(image) if transform.size(*size) == size else image

    def _default_tokens(self, name: str, task: Task) -> int:
        default = self.bagel.defaults.of(task).get(name, getattr(GenerationSettings(), name))
        return min(int(default), self.limits.new_tokens, self.capacity.step_tokens)

    def count(self, items: Sequence[Item], output: Media, order: Order) -> TokenCount:
        """The tokens that a request reads before it writes or draws."""
        read = [system_prompt(output), *items] if order.settings.think else list(items)
        latents, runtime = output == "image", self.bagel.runtime
        texts = [item for item in read if isinstance(item[1], str)]
        images = [item for item in read if not isinstance(item[1], str)]
        return TokenCount(tokens_of(runtime, texts, latents=latents), tokens_of(runtime, images, latents=latents))

    # ---------------------------------------------------------------------------------------------------- its state

    def warm_up(self) -> None:
        """Does beforehand what would make the first requests wait."""
        _ = self.bagel.runtime.previewer

    @property
    def present(self) -> int:
        """Requests at work and waiting."""
        return self._present

    @property
    def open(self) -> bool:
        """Whether requests are taken."""
        return not self._closed

    def _retry_after(self) -> int:
        """Seconds until a place is likely to be free: the queue's usual pace."""
        if not self._durations:
            return _LEAST_RETRY
        usual = sorted(self._durations)[len(self._durations) // 2]
        return round(min(max(usual / 2, _LEAST_RETRY), _MOST_RETRY))

    def close(self) -> None:
        """Takes no more requests; those at work go on."""
        with self._lock:
            self._closed = True

    def stop(self) -> None:
        """Closes, and ends the service's own thread once it has done what it was given."""
        self.close()
        self._driver.stop()

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests, and waits for those at work.

        Returns: whether all of them ended within `timeout` seconds.
        """
        with self._lock:
            self._closed = True
            return self._empty.wait_for(lambda: self._present == 0, timeout)
