"""`bagel serve`: the HTTP server."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from bagel_mot.cli.options import (
    CheckpointOption,
    DeviceOption,
    OffloadOption,
    PrecisionOption,
    command,
    load,
    notes,
)
from bagel_mot.errors import BagelError, SettingError

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@command
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
    checkpoint: CheckpointOption = "mini",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    offload: OffloadOption = "auto",
    model_name: Annotated[
        str | None, typer.Option(help="The name by which clients ask for the model; the checkpoint's if not given.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that clients must show (Authorization: Bearer KEY); repeatable. Better given in the variable, "
            "several with spaces between them: arguments can be seen by every user of the machine.",
            envvar="BAGEL_API_KEYS",
            metavar="KEY",
            rich_help_panel="Security",
        ),
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option(
            "--no-auth", help="Where no key is given, serve everybody who can reach it.", rich_help_panel="Security"
        ),
    ] = False,
    allow_url: Annotated[
        list[str] | None,
        typer.Option(
            help="A host from which pictures may be fetched, such as example.org or example.org:8443; repeatable. "
            "None if not given.",
            metavar="HOST",
            rich_help_panel="Security",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            help="An origin whose web pages may ask, such as https://example.org, or * for all; repeatable.",
            metavar="ORIGIN",
            rich_help_panel="Security",
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write what is asked into the log.", rich_help_panel="Security")
    ] = False,
    max_queue: Annotated[
        int, typer.Option(help="Maximum requests at work and waiting; more get 429.", min=1, rich_help_panel="Limits")
    ] = 64,
    max_n: Annotated[int, typer.Option(help="Maximum results of one request.", min=1, rich_help_panel="Limits")] = 8,
    max_images: Annotated[
        int, typer.Option(help="Maximum pictures in one request.", min=1, rich_help_panel="Limits")
    ] = 8,
    max_image_pixels: Annotated[
        int, typer.Option(help="Maximum pixels of a picture in a request.", min=1, rich_help_panel="Limits")
    ] = 32_000_000,
    max_body: Annotated[int, typer.Option(help="Maximum MiB of a request.", min=1, rich_help_panel="Limits")] = 64,
    max_timesteps: Annotated[
        int, typer.Option(help="Maximum num_timesteps.", min=2, max=1000, rich_help_panel="Limits")
    ] = 250,
    max_new_tokens: Annotated[
        int, typer.Option(help="Maximum tokens written, thinking included.", min=1, rich_help_panel="Limits")
    ] = 4096,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GiB that requests may take beside the weights; most of what is free if not given.",
            min=0.01,
            rich_help_panel="Limits",
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's clients speak. The first Ctrl-C finishes what is at work, a second ends.

    bagel serve --port 8000
    """
    try:
        from bagel_mot.serving.edge.run import address_of, check_exposure, is_loopback, listen
        from bagel_mot.serving.edge.run import serve as run
        from bagel_mot.serving.openai.app import create_app
        from bagel_mot.serving.options import ServerOptions
        from bagel_mot.serving.service import Limits, Service
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bagel_mot", "torch"):
            raise
        raise BagelError(f'serving needs {error.name}: run pip install "bagel-mot[serve]".') from error

    keys = tuple(api_key or ())
    if any(not key.strip() or not key.isascii() for key in keys):
        raise SettingError("an API key is empty or not ASCII: give letters, digits and signs.")
    check_exposure(host, keys, no_auth)
    listening = listen(host, port)  # before minutes go into loading a large model
    with listening:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("bagel_mot.serving").setLevel(logging.INFO)
        limits = Limits(
            queue=max_queue,
            images=max_images,
            image_pixels=max_image_pixels,
            n=max_n,
            timesteps=max_timesteps,
            new_tokens=max_new_tokens,
        )
        bagel = load(checkpoint, device, precision, offload=offload)
        service = Service(bagel, limits=limits, memory=None if memory is None else int(memory * 2**30))
        options = ServerOptions(
            model_name=model_name or name_of(checkpoint),
            api_keys=keys,
            allowed_urls=tuple(allow_url or ()),
            cors_origins=tuple(cors or ()),
            # Without a key, a web page in a browser here could reach the server by a name of its own.
            allowed_hosts=(*_LOCAL_NAMES, host) if is_loopback(host) and not keys and not no_auth else None,
            max_body_bytes=max_body << 20,
            log_prompts=log_prompts,
        )
        address = address_of(listening)

        def started() -> None:
            line = f"{options.model_name} listens at {address}  (API below /v1, reference at /docs)"
            notes().print(line, markup=False, soft_wrap=True)

        run(create_app(service, options), service, listening, started)


def name_of(checkpoint: str) -> str:
    """The name of a checkpoint for clients: a hub id as it is, or the last part of a folder's path."""
    return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint
