"""The parts of a loaded model that all requests share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from bagel_mot.config import BagelConfig
from bagel_mot.errors import ContextLengthError
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.prefixes import PrefixCache
from bagel_mot.inference.preview import Previewer
from bagel_mot.inference.request import TextInput
from bagel_mot.model.cache import Context
from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE, SYSTEM_PROMPT_UNDERSTAND
from bagel_mot.sequence import TextSegment, text_segment
from bagel_mot.task import Task
from bagel_mot.tokenizer import SpecialTokens, Tokenizer


@dataclass(frozen=True, eq=False)
class Runtime:
    """A loaded model with its engine, tokenizer and defaults.

    Attributes:
        engine: runs all requests.
        config: the model's configuration.
        tokenizer: the model's tokenizer.
        special: ids of the special tokens.
        defaults: default settings, image transforms and preview images of the checkpoint.
        tasks: the tasks that the model was loaded for.
        prefixes: beginnings that requests have read and others can go on from.
    """

    engine: Engine
    config: BagelConfig
    tokenizer: Tokenizer
    special: SpecialTokens
    defaults: Defaults
    tasks: Collection[Task]
    prefixes: PrefixCache = field(default_factory=PrefixCache)

    @cached_property
    def previewer(self) -> Previewer:
        """The map from latents to previews, fitted when it is first asked for."""
        return Previewer(self.engine.autoencoder, self.defaults.preview_images)

    def forget(self) -> None:
        """Lets go of what it keeps of the model, which is closed."""
        self.prefixes.resize(0)
        self.__dict__.pop("previewer", None)

    def system_prompt(self, task: Task) -> TextInput:
        """The input that comes first where the model is to think."""
        prompt = SYSTEM_PROMPT_GENERATE if task.draws else SYSTEM_PROMPT_UNDERSTAND
        return TextInput("system", prompt, self.text(prompt))

    def text(self, text: str) -> TextSegment:
        """A text, tokenized, between its start and its end token."""
        return text_segment(self.tokenizer.encode(text), self.special)

    def room(self, context: Context) -> int:
        """Rotary positions that are left behind a context."""
        return self.config.decoder.max_position_embeddings - context.position

    def check_room(self, used: int, more: int) -> None:
        """Checks that `used` positions and `more` ones are no more than the model has.

        Raises:
            ContextLengthError: they are more.
        """
        limit = self.config.decoder.max_position_embeddings
        if used + more > limit:
            raise ContextLengthError(
                f"the context and what is to follow would take {used + more} positions or more, the model has {limit} "
                "(each text token takes one, each picture two): shorten it."
            )
