"""`bagel app`: the page in the browser."""

from __future__ import annotations

import threading
from typing import Annotated, Literal

import typer

from bagel_mot.cli.options import (
    command,
    notes,
)
from bagel_mot.cli.weights import Weights, load, with_weights
from bagel_mot.errors import BagelError, SettingError


@command
@with_weights
def app(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Also open a public link through gradio.live, for up to a week.")
    ] = False,
    auth: Annotated[
        list[str] | None,
        typer.Option(
            help="Who may use the page; repeatable, or several with spaces between them in the variable. "
            "Everybody who can reach it if not given.",
            envvar="BAGEL_APP_AUTH",
            metavar="USER:PASSWORD",
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Also open the page in this machine's browser.")] = False,
    lang: Annotated[
        Literal["en", "zh"], typer.Option(help="Language that the page begins in.", metavar="en|zh")
    ] = "en",
    *,
    weights: Weights,
) -> None:
    """Open the page: draw, edit, ask and chat in a browser. Ctrl-C ends.

    bagel app --port 7860
    """
    users = [user_of(one) for one in auth or ()]
    from bagel_mot.app.page import create_page  # says in one sentence what is missing, where something is
    from bagel_mot.app.style import FAVICON, page_options
    from bagel_mot.serving.edge.run import is_loopback, listen
    from bagel_mot.serving.service import Service

    with listen(host, port) as listening:  # before minutes go into loading a large model
        port = listening.getsockname()[1]
    bagel = load(weights)
    name = f"{weights.checkpoint} · {bagel.device} · {bagel.checkpoint.precision.name}"
    page = create_page(Service(bagel), language=lang, name=name)
    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=users or None,
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            inbrowser=open_browser,
            favicon_path=FAVICON,
            **page_options(),
        )
        if not users and (share or not is_loopback(host)):
            notes().print("everybody who can reach the page may use it: --auth USER:PASSWORD limits that", markup=False)
        notes().print(f"the page is at {public or local}  (Ctrl-C ends)", markup=False, soft_wrap=True)
        threading.Event().wait()
    except OSError as error:
        raise BagelError(f"port {port} of {host} cannot be listened at ({error}): give another --port.") from error
    finally:
        page.close(verbose=False)


def user_of(text: str) -> tuple[str, str]:
    """A name and a password.

    Raises:
        SettingError: one of them is missing.
    """
    name, _, password = text.partition(":")
    if not name or not password:
        raise SettingError("auth is not of the form USER:PASSWORD, both of them with one character or more.")
    return name, password
