"""The look of the page. Fonts are the system's own: nothing is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from bagel_mot.app.image_files import MAX_UPLOAD

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

FAVICON = str(Path(__file__).with_name("favicon.svg"))
FAVICON_LINK = f'<link rel="icon" href="data:image/svg+xml,{quote(Path(FAVICON).read_text(encoding="utf-8"))}">'
CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def _theme() -> gr.themes.Base:
    theme = gr.themes.Soft(
        primary_hue="orange", secondary_hue="amber", neutral_hue="stone", font=_SANS, font_mono=_MONO
    )
    # Not by `set`, which would forget what makes it soft.
    for mode in ("", "_dark"):
        setattr(theme, f"block_title_background_fill{mode}", "none")
        setattr(theme, f"block_title_text_color{mode}", "*body_text_color")
        setattr(theme, f"block_label_background_fill{mode}", "*background_fill_primary")
        setattr(theme, f"block_label_text_color{mode}", "*body_text_color")
        setattr(theme, f"button_cancel_background_fill{mode}", "#dc2626")
        setattr(theme, f"button_cancel_background_fill_hover{mode}", "#ef4444")
        setattr(theme, f"button_cancel_text_color{mode}", "white")
    theme.block_title_padding = "0"
    return theme


def page_options() -> dict[str, Any]:
    """Options of launching and mounting: look, limits, and nothing that tells or shows more than the page itself."""
    return {
        "theme": _theme(),
        "css": CSS,
        "footer_links": [],
        "run_history": False,
        "allowed_paths": [],
        "max_file_size": MAX_UPLOAD,
        "show_error": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
    }
