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
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware

from bagel_mot.serving.edge.metrics import ServerMetrics
from bagel_mot.serving.edge.security import Gate, Observe
from bagel_mot.serving.openai import chat, images
from bagel_mot.serving.openai.errors import ApiError, install, no_such_model
from bagel_mot.serving.openai.routes import AppState, CurrentState
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


class ServerStatus(BaseModel):
    """The state of the server."""

    status: str
    model: str
    requests: int


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

    app = FastAPI(
        title="BAGEL",
        version=__version__,
        summary="Text and pictures in, text and pictures out, as OpenAI's clients speak.",
        lifespan=lifespan,
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
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Observe, metrics=metrics, log_prompts=options.log_prompts)
    return app


@router.get("/v1/models", tags=["models"], summary="What models there are")
async def models(state: CurrentState) -> ModelList:
    return ModelList(data=[_model(state)])


@router.get("/v1/models/{model:path}", tags=["models"], summary="One model")
async def model(model: str, state: CurrentState) -> Model:
    if model != state.options.model_name:
        raise no_such_model(model, state.options.model_name)
    return _model(state)


def _model(state: AppState) -> Model:
    return Model(id=state.options.model_name, created=_STARTED)


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
