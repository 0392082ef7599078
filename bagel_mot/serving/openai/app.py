"""The app: an HTTP interface that OpenAI's clients speak, on top of a `Service`.

    app = create_app(Service(Bagel.from_pretrained("mini")), ServerOptions(model_name="mini"))

Needs the packages of `pip install "bagel-mot[serve]"`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware

from bagel_mot.serving.edge.metrics import Metrics
from bagel_mot.serving.edge.security import Gate, Observe
from bagel_mot.serving.openai import chat
from bagel_mot.serving.openai import images as drawing
from bagel_mot.serving.openai.errors import ApiError, install, no_such_model
from bagel_mot.serving.openai.routes import Desk, desk_of
from bagel_mot.serving.openai.schemas import ErrorResponse, Model, ModelList
from bagel_mot.serving.options import ServerOptions
from bagel_mot.serving.service import Service
from bagel_mot.version import __version__

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request cannot be answered as it is; the message says why."},
    "5XX": {"model": ErrorResponse, "description": "The server cannot answer now."},
}
_STARTED = int(time.time())
router = APIRouter()


class Status(BaseModel):
    """How the server is."""

    status: str
    model: str
    requests: int


def create_app(service: Service, options: ServerOptions | None = None) -> FastAPI:
    """An app that asks a service. Pages can be mounted into it, and then share its queue.

    Only `/v1` and `/metrics` ask for a key: what is mounted elsewhere has to guard itself.
    """
    options = options or ServerOptions()
    metrics = Metrics(service)
    desk = Desk(service, options, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await desk.in_thread(service.warm_up)
        desk.ready = True
        yield
        desk.ready = False

    app = FastAPI(
        title="BAGEL",
        version=__version__,
        summary="Text and pictures in, text and pictures out, as OpenAI's clients speak.",
        lifespan=lifespan,
        responses=_ERRORS,
    )
    app.state.desk = desk
    install(app)
    app.include_router(router)
    app.include_router(chat.router)
    app.include_router(drawing.router)
    # The last one added stands first.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=options.max_body_bytes)
    app.add_middleware(
        Gate,
        service=service,
        keys=options.api_keys,
        hosts=options.allowed_hosts,
        max_body_bytes=options.max_body_bytes,
    )
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Observe, metrics=metrics, log_prompts=options.log_prompts)
    return app


@router.get("/v1/models", tags=["models"], summary="What models there are")
async def models(desk: Annotated[Desk, Depends(desk_of)]) -> ModelList:
    return ModelList(data=[_model(desk)])


@router.get("/v1/models/{model:path}", tags=["models"], summary="One model")
async def model(model: str, desk: Annotated[Desk, Depends(desk_of)]) -> Model:
    if model != desk.options.model_name:
        raise no_such_model(model, desk.options.model_name)
    return _model(desk)


def _model(desk: Desk) -> Model:
    return Model(id=desk.options.model_name, created=_STARTED)


@router.get("/health", tags=["state"], summary="Whether the process lives")
async def health(desk: Annotated[Desk, Depends(desk_of)]) -> Status:
    return _status(desk, "ok")


@router.get("/ready", tags=["state"], summary="Whether requests are taken")
async def ready(desk: Annotated[Desk, Depends(desk_of)]) -> Status:
    """503 while the server warms up or shuts down."""
    if not desk.service.open:
        raise ApiError(503, "the server is shutting down.", kind="server_error", code="shutting_down")
    if not desk.ready:
        raise ApiError(503, "the server is warming up.", kind="server_error", code="warming_up", retry_after=1)
    return _status(desk, "ready")


def _status(desk: Desk, status: str) -> Status:
    return Status(status=status, model=desk.options.model_name, requests=desk.service.present)


@router.get("/metrics", tags=["state"], summary="Metrics for Prometheus", response_class=Response)
async def metrics(desk: Annotated[Desk, Depends(desk_of)]) -> Response:
    return Response(await desk.in_thread(partial(desk.metrics.text)), media_type=CONTENT_TYPE_LATEST)
