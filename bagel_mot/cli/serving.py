"""`bagel serve`: the HTTP server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from bagel_mot.cli.options import (
    command,
    notes,
    with_options,
)
from bagel_mot.cli.weights import Weights, load, with_weights
from bagel_mot.errors import BagelError, SettingError
from bagel_mot.files import parse_size
from bagel_mot.installation import install_command

if TYPE_CHECKING:
    from bagel_mot.serving.limits import Limits

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def _limit(about: str, low: float = 1, high: float | None = None) -> Any:
    return typer.Option(help=about, min=low, max=high, rich_help_panel="Limits")


def _security(*names: str, about: str, **more: Any) -> Any:
    return typer.Option(*names, help=about, rich_help_panel="Security", **more)


@dataclass(frozen=True)
class _Security:
    """Who may use the server, and what it may do for them."""

    api_key: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this annotation at run time
        _security(
            about="A key that clients must show (Authorization: Bearer KEY); repeatable. Better given in the variable, "
            "several with spaces between them: arguments can be seen by every user of the machine.",
            envvar="BAGEL_API_KEYS",
            metavar="KEY",
        ),
    ] = None
    no_auth: Annotated[
        bool, _security("--no-auth", about="Where no key is given, serve everybody who can reach it.")
    ] = False
    allow_url: Annotated[
        Optional[list[str]],  # noqa: UP045
        _security(
            about="A host from which pictures may be fetched, such as example.org or example.org:8443; repeatable. "
            "None if not given.",
            metavar="HOST",
        ),
    ] = None
    cors: Annotated[
        Optional[list[str]],  # noqa: UP045
        _security(
            about="An origin whose web pages may ask, such as https://example.org, or * for all; repeatable.",
            metavar="ORIGIN",
        ),
    ] = None
    log_prompts: Annotated[bool, _security("--log-prompts", about="Write prompts into the log.")] = False

    def keys(self) -> tuple[str, ...]:
        """The keys.

        Raises:
            SettingError: one of them cannot be sent.
        """
        found = tuple(self.api_key or ())
        if any(not key.strip() or not key.isascii() for key in found):
            raise SettingError("an API key is empty or not ASCII: give letters, digits and signs.")
        return found


@dataclass(frozen=True)
class _Largest:
    """The largest requests that are taken."""

    max_queue: Annotated[int, _limit("Maximum requests at work and waiting; more get 429.")] = 64
    max_n: Annotated[int, _limit("Maximum results of one request.")] = 8
    max_images: Annotated[int, _limit("Maximum pictures in one request.")] = 8
    max_image_pixels: Annotated[int, _limit("Maximum pixels of a picture in a request.")] = 52_000_000
    max_body: Annotated[int, _limit("Maximum MiB of a request.")] = 64
    max_timesteps: Annotated[int, _limit("Maximum num_timesteps.", 2, 1000)] = 250
    max_new_tokens: Annotated[int, _limit("Maximum tokens written, thinking included.")] = 4096
    work_memory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Memory that requests may take beside the weights, such as 4GB; most of what is free if not given.",
            metavar="SIZE",
            rich_help_panel="Limits",
        ),
    ] = None

    def limits(self) -> Limits:
        """The limits of the service."""
        from bagel_mot.serving.limits import Limits

        return Limits(
            queue=self.max_queue,
            images=self.max_images,
            image_pixels=self.max_image_pixels,
            n=self.max_n,
            timesteps=self.max_timesteps,
            new_tokens=self.max_new_tokens,
        )


@command
@with_options(_Largest, "largest")
@with_options(_Security, "security")
@with_weights
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
    model_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            "--model-name",
            help="The name by which clients ask for the model; the checkpoint's if not given. Repeatable: further "
            "names, such as gpt-image-1, are taken as well.",
            metavar="NAME",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse OpenAI's fields that have no effect here, instead of ignoring them."),
    ] = False,
    *,
    weights: Weights,
    security: _Security,
    largest: _Largest,
) -> None:
    """Serve a model over HTTP, as OpenAI's clients speak. The first Ctrl-C finishes what is at work, a second ends.

    bagel serve --port 8000
    """
    try:
        from bagel_mot.serving.edge.run import address_of, check_exposure, is_loopback, listen
        from bagel_mot.serving.edge.run import serve as run
        from bagel_mot.serving.openai.app import create_app
        from bagel_mot.serving.options import ServerOptions
        from bagel_mot.serving.service import Service
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bagel_mot", "torch"):
            raise
        raise BagelError(f"serving needs {error.name}: run {install_command('serve')}.") from error

    keys = security.keys()
    names = tuple(model_name or [name_of(weights.checkpoint)])
    if any(not name.strip() for name in names):
        raise SettingError("a name of the model is empty: give one that clients can ask for.")
    check_exposure(host, keys, security.no_auth)
    listening = listen(host, port)  # before minutes go into loading a large model
    with listening:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("bagel_mot.serving").setLevel(logging.INFO)
        bagel = load(weights)
        memory = None if largest.work_memory is None else parse_size(largest.work_memory)
        service = Service(bagel, limits=largest.limits(), memory=memory)
        options = ServerOptions(
            model_name=names[0],
            aliases=names[1:],
            api_keys=keys,
            allowed_urls=tuple(security.allow_url or ()),
            cors_origins=tuple(security.cors or ()),
            # Without a key, a web page in a browser here could reach the server by a name of its own.
            allowed_hosts=(*_LOCAL_NAMES, host) if is_loopback(host) and not keys and not security.no_auth else None,
            max_body_bytes=largest.max_body << 20,
            log_prompts=security.log_prompts,
            strict=strict,
        )
        address = address_of(listening)

        def started() -> None:
            line = f"{options.model_name} listens at {address}  (API below /v1, reference at /docs)"
            notes().print(line, markup=False, soft_wrap=True)

        run(create_app(service, options), service, listening, started)


def name_of(checkpoint: str) -> str:
    """The name of a checkpoint for clients: a hub id as it is, or the last part of a folder's path."""
    return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint
