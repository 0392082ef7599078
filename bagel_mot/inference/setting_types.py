"""The settings of `bagel_mot.inference.settings` as types, so that editors complete their names and type checkers check
them. Each exists twice: with one value for each setting, and with lists too, which give one value to each request of a
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

_LowHigh = Sequence[float]  # two numbers
_WidthHeight = Sequence[int] | str  # (width, height), or a text such as "64x48"
_Renorm = Literal["global", "channel", "text_channel"]


class WritingSettings(TypedDict, total=False):
    """The settings of all text, thinking included."""

    think: bool
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None


class AnswerSettings(WritingSettings, total=False):
    """The settings of an answer."""

    max_new_tokens: int
    stop: str | Sequence[str]
    vit_min_size: int | None


class DrawingSettings(WritingSettings, total=False):
    """The settings of an image."""

    cfg_text_scale: float
    cfg_image_scale: float
    cfg_interval: _LowHigh
    cfg_renorm_type: _Renorm
    cfg_renorm_min: float
    num_timesteps: int
    timestep_shift: float
    eta: float
    enable_taylorseer: bool
    size: _WidthHeight | None
    max_think_tokens: int


class EditingSettings(DrawingSettings, total=False):
    """The settings of an edit."""

    vit_min_size: int | None


class AnySettings(AnswerSettings, DrawingSettings, total=False):
    """The settings of an image or an answer."""


class WritingSettingsLists(TypedDict, total=False):
    """The settings of all text, for a batch."""

    think: bool | list[bool]
    do_sample: bool | list[bool]
    temperature: float | list[float]
    top_k: int | list[int]
    top_p: float | list[float]
    repetition_penalty: float | list[float]
    seed: int | list[int] | list[int | None] | None


class AnswerSettingsLists(WritingSettingsLists, total=False):
    """The settings of answers, for a batch."""

    max_new_tokens: int | list[int]
    stop: str | Sequence[str] | list[list[str]]
    vit_min_size: int | list[int] | list[int | None] | None


class DrawingSettingsLists(WritingSettingsLists, total=False):
    """The settings of images, for a batch."""

    cfg_text_scale: float | list[float]
    cfg_image_scale: float | list[float]
    cfg_interval: _LowHigh | list[_LowHigh] | list[tuple[float, float]]
    cfg_renorm_type: _Renorm | list[_Renorm]
    cfg_renorm_min: float | list[float]
    num_timesteps: int | list[int]
    timestep_shift: float | list[float]
    eta: float | list[float]
    enable_taylorseer: bool | list[bool]
    size: _WidthHeight | list[_WidthHeight | None] | list[tuple[int, int]] | None
    max_think_tokens: int | list[int]


class EditingSettingsLists(DrawingSettingsLists, total=False):
    """The settings of edits, for a batch."""

    vit_min_size: int | list[int] | list[int | None] | None


class AnySettingsLists(AnswerSettingsLists, DrawingSettingsLists, total=False):
    """The settings of images or answers, for a batch."""
