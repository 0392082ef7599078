"""The app: an HTTP interface that OpenAI's clients speak, on top of a `Service`.

    app = create_app(Service(Bagel.from_pretrained("mini")), ServerOptions(model_name="mini"))

Needs the packages of the extra `serve`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware

from bagel_mot.serving.edge.metrics import ServerMetrics
from bagel_mot.serving.edge.security import Gate, Observe
from bagel_mot.serving.openai import chat, images
from bagel_mot.serving.openai.errors import ApiError, install
from bagel_mot.serving.openai.routes import HINT_HEADER, IGNORED_HEADER, AppState, CurrentState
from bagel_mot.serving.openai.schemas import ErrorResponse, Model, ModelList
from bagel_mot.serving.options import ServerOptions
from bagel_mot.serving.service import Service
from bagel_mot.version import __version__

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request cannot be answered as it is; the message says why."},
    "5XX": {"model": ErrorResponse, "description": "The server cannot answer now."},
}
_STARTED = int(time.time())
_FAVICON = (  # a bagel
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" fill="none"><circle cx="32" cy="32" r="20" '
    'stroke="#d98e3f" stroke-width="19"/><circle cx="32" cy="32" r="20" stroke="#f2b76b" stroke-width="12"/></svg>'
)
router = APIRouter()


class ServerStatus(BaseModel):
    """The state of the server."""

    status: str
    model: str
    requests: int


class Overview(BaseModel):
    """The server's addresses, for whoever opens it in a browser."""

    model: str
    version: str
    docs: str = "/docs"
    openapi: str = "/openapi.json"
    models: str = "/v1/models"
    chat: str = "/v1/chat/completions"
    images: str = "/v1/images/generations"
    edits: str = "/v1/images/edits"
    health: str = "/health"
    ready: str = "/ready"
    metrics: str = "/metrics"


class ServerVersion(BaseModel):
    """The version of bagel_mot that serves."""

    version: str


def create_app(service: Service, options: ServerOptions | None = None) -> FastAPI:
    """An app on a service. Pages can be mounted into it, and then share its queue.

    Only `/v1` and `/metrics` ask for a key: a page mounted elsewhere has to guard itself.
    """
    options = options or ServerOptions()
    metrics = ServerMetrics(service)
    state = AppState(service, options, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await state.in_thread(service.warm_up)
        state.ready = True
        yield
        state.ready = False

    app = FastAPIOffline(
        title="BAGEL",
        version=__version__,
        summary="Text and pictures in, text and pictures out, as OpenAI's clients speak.",
        lifespan=lifespan,
        favicon_url="/favicon.ico",
        responses=_ERRORS,
    )
    app.state.bagel = state
    install(app)
    app.include_router(router)
    app.include_router(chat.router)
    app.include_router(images.router)
    # The last one added is the outermost.
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
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", IGNORED_HEADER, HINT_HEADER],
        )
    app.add_middleware(Observe, metrics=metrics, log_prompts=options.log_prompts)
    return app


@router.get("/", tags=["state"], summary="Where things are")
async def overview(state: CurrentState) -> Overview:
    return Overview(model=state.options.model_name, version=__version__)


@router.get("/version", tags=["state"], summary="The version of the server")
async def version() -> ServerVersion:
    return ServerVersion(version=__version__)


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    return Response(_FAVICON, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})


@router.get("/v1/models", tags=["models"], summary="What models there are")
async def models(state: CurrentState) -> ModelList:
    """The model under each of its names."""
    return ModelList(data=[_model(state, name) for name in state.options.names])


@router.get("/v1/models/{model:path}", tags=["models"], summary="One model")
async def model(model: str, state: CurrentState) -> Model:
    return _model(state, state.model(model))


def _model(state: AppState, name: str) -> Model:
    return Model(id=name, created=_STARTED, vit_max_size=state.service.bagel.defaults.vit_transform.max_size)


@router.get("/health", tags=["state"], summary="Whether the process lives")
async def health(state: CurrentState) -> ServerStatus:
    return _status(state, "ok")


@router.get("/ready", tags=["state"], summary="Whether requests are taken")
async def ready(state: CurrentState) -> ServerStatus:
    """503 while the server warms up or shuts down."""
    if not state.service.open:
        raise ApiError(503, "the server is shutting down.", kind="server_error", code="shutting_down")
    if not state.ready:
        raise ApiError(503, "the server is warming up.", kind="server_error", code="warming_up", retry_after=1)
    return _status(state, "ready")


def _status(state: AppState, status: str) -> ServerStatus:
    return ServerStatus(status=status, model=state.options.model_name, requests=state.service.present)


@router.get("/metrics", tags=["state"], summary="Metrics for Prometheus", response_class=Response)
async def metrics(state: CurrentState) -> Response:
    return Response(await state.in_thread(state.metrics.text), media_type=CONTENT_TYPE_LATEST)
