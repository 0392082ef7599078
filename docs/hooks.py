"""What mkdocs does beside its plugins.

The page of ComfyUI is the README of the node pack, with links that fit the site, and the table of contents of a
reference names functions without their arguments.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SIGNATURE = re.compile(r"^### `([\w.]+)(?:\(.*\))?`$", re.MULTILINE)
PACK = Path(__file__).parent.parent / "integrations" / "comfyui"


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The text of a page, as it was written or changed."""
    if page.file.src_uri != "comfyui.md":
        return SIGNATURE.sub(r'\g<0> { data-toc-label="\1" }', markdown)
    files = f"{config.repo_url}/blob/main/"

    def link(found: re.Match[str]) -> str:
        target, _, anchor = found[1].partition("#")
        path = (PACK / target).resolve()
        if path.parent == Path(__file__).parent:  # a page of this site
            return f"]({path.name}{'#' + anchor if anchor else ''})"
        return f"]({files}{path.relative_to(PACK.parent.parent).as_posix()})"

    text = (PACK / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?://|#)([^)\s]+)\)", link, text)
