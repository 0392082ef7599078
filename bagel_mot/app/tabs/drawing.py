"""What Create and Edit share: the right half of the page, where images form, and the click that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from bagel_mot.app import view as stage
from bagel_mot.app.context import QUICK, Room, RunButtons, quiet, tell, telling
from bagel_mot.app.controls import Controls
from bagel_mot.app.image_files import keep, paths_of, read_recipe, uploaded
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.inference.result import Result

Collect = Callable[..., list[Any]]


class Easel:
    """Where images appear.

    Attributes:
        stage: progress and the images as they form.
        gallery: finished ones.
        facts: how they were made.
        chosen: the number of the one that was clicked on.
    """

    def __init__(self, room: Room, part: str) -> None:
        self.stage = quiet(f"{part}-stage")
        self.gallery = room.labels.make(
            gr.Gallery,
            label=say("results"),
            interactive=False,
            format="png",
            columns=1,
            height=500,
            elem_classes="bagel-gallery",
            object_fit="contain",
            buttons=["download", "fullscreen"],
            elem_id=f"{part}-gallery",
        )
        self.facts = quiet(f"{part}-facts")
        self.chosen = gr.State(0)
        self.gallery.select(_index, None, self.chosen, **QUICK)

    @property
    def outputs(self) -> list[Any]:
        return [self.stage, self.gallery, self.facts, self.chosen]

    def show(self, results: Sequence[Result], language: Language) -> dict[Any, Any]:
        """Updates: finished images."""
        several = len(results) > 1
        files = [
            (
                keep(result.image, f"bagel-{result.seed}"),
                text(language, "seed_is", seed=result.seed) if several else None,
            )
            for result in results
            if result.image is not None
        ]
        return {
            self.gallery: gr.update(
                value=files,
                visible=True,
                columns=2 if several else 1,
                selected_index=None if several else 0,
                preview=not several,
            ),
            self.facts: stage.facts(results, language),
            self.chosen: 0,
        }


def _index(event: gr.SelectData) -> int:
    return int(event.index)


def build_settings(room: Room, part: str, controls: Controls, prompt: Any) -> Any:
    """Below what is given: how many images, presets, size, thinking, seed, and all other settings folded away.

    Returns: the component with the number of images.
    """
    make, limits = room.labels.make, room.service.limits
    controls.build_presets()
    controls.build("size")
    count = make(
        gr.Slider,
        minimum=1,
        maximum=max(min(limits.n, limits.queue), 2),  # a slider needs two ends
        step=1,
        value=1,
        label=say("count"),
        info=say("count_info"),
        elem_id=f"{part}-count",
    )
    controls.build("think", "seed")
    controls.build_seed_buttons()
    with make(gr.Accordion, label=say("settings"), open=False, elem_id=f"{part}-settings"):
        controls.build()
    controls.connect()
    with make(gr.Accordion, label=say("restore_title"), open=False, elem_id=f"{part}-restore"):
        file = make(
            gr.File,
            label=say("restore"),
            file_types=["image"],
            type="filepath",
            height=120,
            elem_id=f"{part}-restore-file",
        )

    def restore(language: Language, path: str | None) -> list[Any]:
        with telling(language):
            if path is not None:
                recipe = read_recipe(path, controls.task, room.max_pixels)
                gr.Info(text(language, "restored"))
                return [recipe.prompt, *controls.updates(recipe.settings)]
        return [gr.skip() for _ in range(1 + len(controls.components))]

    file.upload(restore, [room.language, file], [prompt, *controls.components], **QUICK)
    return count


def connect(
    room: Room,
    part: str,
    controls: Controls,
    buttons: RunButtons,
    easel: Easel,
    given: Sequence[Any],
    count: Any,
    collect: Collect,
    triggers: Sequence[Any],
) -> None:
    """What Draw does.

    Args:
        given: components whose values `collect` is called with, after the language.
        collect: makes what the model reads; may raise BagelError.
        triggers: events that set to work.
    """

    def run(request: gr.Request, language: Language, count: int, *values: Any) -> Iterator[dict[Any, Any]]:
        desk = room.desks.of(request)
        own, settings = values[: len(given)], values[len(given) :]
        with desk.running(part, int(count)) as work:
            yield {**buttons.show(True), easel.gallery: gr.update(visible=False), easel.facts: ""}
            shown: dict[Any, Any] = {easel.stage: "", easel.gallery: gr.update(visible=True)}
            with telling(language):
                chosen = controls.settings(settings)
                work.start(room.service, collect(language, *own), "image", chosen)
                for _ in work.follow():
                    yield {easel.stage: stage.at_work(work, language)}
                results = work.results()
                if work.stopped:
                    shown[easel.stage] = stage.stopped(work, language)
                    shown[easel.gallery] = gr.update(value=[], visible=False)
                if results:
                    desk.seeds[part] = results[0].seed
                    shown |= easel.show(results, language)
            yield {**shown, **buttons.show(False)}

    gr.on(
        triggers,
        run,
        [room.language, count, *given, *controls.components],
        [*buttons.outputs, *easel.outputs],
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="once",
    )
    buttons.connect()


def chosen_path(gallery: Sequence[tuple[str, str | None]] | None, chosen: int, language: Language) -> str | None:
    """The file of the image that was clicked on, or else of the first; None, and a word about it, where none is."""
    paths = paths_of(gallery)
    if not paths:
        tell(text(language, "nothing_drawn"))
        return None
    with telling(language):
        return uploaded(paths[chosen] if 0 <= chosen < len(paths) else paths[0])
    return None
