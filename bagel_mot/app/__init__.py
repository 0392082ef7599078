"""The page in the browser: draw, edit, ask and chat, on a `Service` that a server may share.

    page = create_page(Service(Bagel.from_pretrained("mini")))   # bagel_mot.app.page
    mount(app, service)                                          # or into a FastAPI app

Needs the packages of the extra `app`. Nothing here talks to the network: Gradio's telemetry is
switched off before it is imported, and fonts are the system's.
"""

import os

from bagel_mot.errors import BagelError
from bagel_mot.installation import install_command

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import gradio  # noqa: F401
except ImportError as error:
    raise BagelError(f"the page needs gradio: run {install_command('app')}.") from error
