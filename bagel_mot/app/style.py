"""The look of the page. Fonts are the system's own: nothing is fetched from elsewhere."""

from __future__ import annotations

from typing import Any

import gradio as gr

from bagel_mot.app.image_files import MAX_UPLOAD

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important }
.gradio-container > main { width: 100% }
.bagel-head { align-items: center; gap: 8px }
.bagel-head h1 { margin: 0; font-size: 28px; letter-spacing: .5px; display: flex; align-items: center; gap: 10px }
.bagel-head h1 i { flex: none; width: 26px; height: 26px; border-radius: 50%; border: 8px solid var(--color-accent) }
.bagel-head p { margin: 2px 0 0; color: var(--body-text-color-subdued) }
.bagel-language { max-width: 210px; margin-left: auto }
.bagel-columns { display: grid !important; gap: 16px; align-items: start; grid-template-columns: 1fr 1fr;
  grid-template-areas: "inputs results" "settings results"; grid-template-rows: auto 1fr }
.bagel-inputs { grid-area: inputs } .bagel-results { grid-area: results } .bagel-settings { grid-area: settings }
.bagel-inputs, .bagel-results, .bagel-settings { min-width: 0 !important }
.bagel-progress { display: flex; flex-direction: column; gap: 8px }
.bagel-bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden }
.bagel-bar > div { height: 100%; border-radius: 4px; background: var(--color-accent); transition: width .25s linear }
.bagel-moving > div { width: 30% !important; animation: bagel-move 1.4s ease-in-out infinite alternate }
@keyframes bagel-move { from { margin-left: 0 } to { margin-left: 70% } }
.bagel-note { font-size: 14px; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums }
.bagel-previews { display: grid; gap: 10px; grid-template-columns: 1fr }
.bagel-previews-2 { grid-template-columns: 1fr 1fr }
.bagel-preview { width: 100%; max-height: 480px; object-fit: contain; border-radius: 10px; display: block }
.bagel-blank { background: var(--background-fill-secondary); border: 1px dashed var(--border-color-primary) }
.bagel-thinking { font-size: 14px; border-left: 3px solid var(--color-accent); padding-left: 10px }
.bagel-thinking summary { cursor: pointer; color: var(--body-text-color-subdued) }
.bagel-thinking p { white-space: pre-wrap; font-style: italic; margin: 4px 0 }
.bagel-optional:not(:has(.bagel-progress)):not(:has(.bagel-note)):not(:has(.bagel-thinking)) { display: none }
.bagel-gallery .thumbnails:not(:has(button:nth-child(2))) { display: none }
.bagel-gallery .preview:not(:has(.thumbnails button:nth-child(2))) .media-button { height: 100% !important }
.bagel-switch { align-items: center }
.bagel-log button[aria-label="Clear"], .bagel-log [aria-label="Share"] { display: none }
.bagel-log .message img { width: min(260px, 60vw) !important; height: auto !important; object-fit: contain !important;
  max-width: none; border-radius: 8px }
.bagel-small { gap: 6px !important }
.bagel-small button { min-width: 72px !important; flex: 1 1 auto }
@media (max-width: 600px) {
  .gradio-container { padding: 8px !important }
  .bagel-head > * { flex: 1 1 100% !important }
  .bagel-language { margin-left: 0; max-width: none; padding: 0 12px }
  .bagel-columns { grid-template-columns: minmax(0, 1fr); grid-template-areas: "inputs" "results" "settings" }
  .bagel-gallery { height: 380px !important }
}
"""


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
