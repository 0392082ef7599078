"""ComfyUI nodes for BAGEL. The root of this repository is the node pack: it is cloned into ComfyUI's `custom_nodes`, as
README.md says.
"""

from __future__ import annotations

from .library import find_library

find_library()  # before anything of it is imported

from .memory import follow_comfyui  # noqa: E402
from .models import OWNER  # noqa: E402
from .nodes import (  # noqa: E402
    BagelAsk,
    BagelEdit,
    BagelGenerate,
    BagelLoad,
    BagelThinkAndAnswer,
    BagelThinkAndDraw,
)
from .places import register  # noqa: E402
from .sessions import (  # noqa: E402
    BagelSessionAddImage,
    BagelSessionAddText,
    BagelSessionAnswer,
    BagelSessionDraw,
    BagelSessionNew,
)
from .settings import BagelAnswerSettings, BagelDrawingSettings, BagelEditingSettings  # noqa: E402

register()
follow_comfyui(OWNER)

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
