"""ComfyUI nodes for BAGEL. Put this folder, or a link to it, into ComfyUI's `custom_nodes`; README.md says how."""

from __future__ import annotations

try:
    from bagel_mot.version import __version__ as _version
except ImportError as error:
    raise ImportError(
        "BAGEL's nodes need the package bagel-mot, which is not installed in ComfyUI's Python: install it as README "
        "of the nodes says (the package called bagel is another project)."
    ) from error
if tuple(map(int, _version.split(".")[:2])) < (0, 2):
    raise ImportError(f"BAGEL's nodes need bagel-mot 0.2 or later; this is {_version}: update it.")

from .models import follow_comfyui
from .nodes import BagelAsk, BagelEdit, BagelGenerate, BagelLoad, BagelThinkAndAnswer, BagelThinkAndDraw
from .sessions import (
    BagelSessionAddImage,
    BagelSessionAddText,
    BagelSessionAnswer,
    BagelSessionDraw,
    BagelSessionNew,
)
from .settings import BagelAnswerSettings, BagelDrawingSettings, BagelEditingSettings

follow_comfyui()

NODE_CLASS_MAPPINGS: dict[str, type] = {
    "BagelLoad": BagelLoad,
    "BagelGenerate": BagelGenerate,
    "BagelEdit": BagelEdit,
    "BagelAsk": BagelAsk,
    "BagelThinkAndDraw": BagelThinkAndDraw,
    "BagelThinkAndAnswer": BagelThinkAndAnswer,
    "BagelDrawingSettings": BagelDrawingSettings,
    "BagelEditingSettings": BagelEditingSettings,
    "BagelAnswerSettings": BagelAnswerSettings,
    "BagelSessionNew": BagelSessionNew,
    "BagelSessionAddText": BagelSessionAddText,
    "BagelSessionAddImage": BagelSessionAddImage,
    "BagelSessionDraw": BagelSessionDraw,
    "BagelSessionAnswer": BagelSessionAnswer,
}

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "BagelLoad": "BAGEL Load",
    "BagelGenerate": "BAGEL Text to Image",
    "BagelEdit": "BAGEL Edit",
    "BagelAsk": "BAGEL Ask",
    "BagelThinkAndDraw": "BAGEL Think and Draw",
    "BagelThinkAndAnswer": "BAGEL Think and Answer",
    "BagelDrawingSettings": "BAGEL Drawing Settings",
    "BagelEditingSettings": "BAGEL Editing Settings",
    "BagelAnswerSettings": "BAGEL Answer Settings",
    "BagelSessionNew": "BAGEL Session",
    "BagelSessionAddText": "BAGEL Session: Add Text",
    "BagelSessionAddImage": "BAGEL Session: Add Image",
    "BagelSessionDraw": "BAGEL Session: Draw",
    "BagelSessionAnswer": "BAGEL Session: Answer",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
