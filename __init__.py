"""The entrance for ComfyUI, where this repository is cloned into its folder `custom_nodes`. To all others it is empty.

ComfyUI looks for nodes in the root of a folder there, and beside them for `requirements.txt`, `example_workflows` and
`locales`. The nodes themselves are in integrations/comfyui, and use the package `bagel_mot` that lies beside them.
"""

import sys

if "folder_paths" in sys.modules:  # a module of ComfyUI, which is there before it loads nodes
    from .integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "integrations/comfyui/web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
