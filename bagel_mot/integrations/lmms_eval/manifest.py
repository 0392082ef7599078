"""The entry point that tells lmms-eval about this model. The classes are imported when they are used."""

from __future__ import annotations

from typing import Any

MODEL_ID = "bagel_mot"
_MODEL = "bagel_mot.integrations.lmms_eval.model"


def manifest() -> Any:
    """The `ModelManifest` of lmms-eval 0.7."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, simple_class_path=f"{_MODEL}.BagelMot", chat_class_path=f"{_MODEL}.BagelMotChat")
