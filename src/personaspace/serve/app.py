"""The HTTP side: routes, errors in OpenAI's shape, keys, limits, metrics. Decoding is the scheduler's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from personaspace.catalog import load_catalog
from personaspace.engines.transformers.batching import NOT_FINITE
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import OutOfMemory, PersonaSpaceError, UsageError
from personaspace.holding.monitor import project
from personaspace.serve.assets import add_pages
from personaspace.serve.bodies import CountedRoute
from personaspace.serve.completions import LOST, Requests
from personaspace.serve.guard import Guard
from personaspace.serve.keep_alive import with_keep_alive
from personaspace.serve.limits import BodyLimit
from personaspace.serve.lock import QueueFull
from personaspace.serve.metrics import Metrics
from personaspace.serve.openapi import (
    ChatReply,
    ModelCard,
    ModelList,
    Projected,
    TextReply,
    WholeResponse,
    answered,
    describe,
    refused,
)
from personaspace.serve.persona import Reader, is_finite
from personaspace.serve.refusals import BadRequest, error_body, error_kind, refusal_of
from personaspace.serve.replies import AnswerFormat
from personaspace.serve.responses import ResponseFormat, ResponseRequest
from personaspace.serve.scheduler import Worker
from personaspace.serve.settings import Settings
from personaspace.serve.texts import texts_of
from personaspace.serve.types import ChatCompletion, Completion, Conversation, TextCompletion
from personaspace.space import PersonaSpace

OPEN_PATHS = ("/", "/healthz", "/readyz")
"""What is answered without a key: whether the server is alive, and its page, which asks for the key."""

CHARACTERS_PROJECTED = 64
"""Characters of a conversation that is to be projected, for each token of the context; what fits of it is read."""

log = logging.getLogger("personaspace.serve")


def create_app(space: PersonaSpace, engine: TransformersEngine, settings: Settings | None = None) -> FastAPI:
    """The server's application for a space and its model. Raises `SpaceError` where they do not belong together, `UsageError`
    where there is no room for the context that is asked for."""
    settings = settings or Settings()
    space.check_model(engine.info)
    context = _context(engine, settings)
    reader = Reader.of(space, engine.info.id.rstrip("/").rsplit("/", 1)[-1], settings.watch)
    worker = Worker(engine, space.layer, space.axis_at(), rows=settings.rows, queue=settings.queue, columns=context)
    metrics = Metrics(space, worker)
    requests = Requests(engine, reader, worker, metrics, settings, context)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        with ThreadPoolExecutor(1) as stopper:  # the loop's own threads may all be waiting for the model
            await asyncio.get_running_loop().run_in_executor(stopper, worker.stop)

    app = FastAPI(title="personaspace", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.router.route_class = CountedRoute
    app.state.worker, app.state.settings, app.state.context = worker, settings, context
    _errors(app, worker, metrics)
    _outside(app, settings, metrics)
    _states(app, worker)
    add_pages(app, settings.framed_by)
    _api(app, requests, reader)

    prometheus: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=PlainTextResponse, responses={**prometheus, **refused(401)})
    async def exposition() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    describe(app, settings, reader)
    return app


def _context(engine: TransformersEngine, settings: Settings) -> int:
    """How many tokens a prompt and its reply may have: so many rows fit only where each may not become too long."""
    fit = engine.columns_that_fit(settings.rows)
    if settings.context is None:
        return min(engine.info.context or 4096, fit)
    if engine.info.context and settings.context > engine.info.context:
        raise UsageError(f"--context {settings.context}: {engine.info.id} takes {engine.info.context} tokens")
    if settings.context > fit:
        raise UsageError(
            f"--context {settings.context}: there is memory for {fit} tokens in each of {settings.rows} rows; lower --rows"
        )
    return settings.context


def _api(app: FastAPI, requests: Requests, reader: Reader) -> None:
    def card(name: str) -> dict[str, Any]:
        owned = {"object": "model", "created": 0, "owned_by": "personaspace"}
        return {"id": name, **owned, "max_model_len": requests.context}

    @app.get("/v1/models", responses=answered(ModelList, 401))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in reader.models]}

    @app.get("/v1/models/{name:path}", responses=answered(ModelCard, 401, 404))
    async def model(name: str) -> dict[str, Any]:
        if name not in reader.models:
            raise BadRequest(f"The model '{name}' does not exist", "model", "model_not_found", 404)
        return card(name)

    every = (400, 401, 404, 408, 413, 415, 429, 500, 503)

    @app.post("/v1/chat/completions", responses=answered(ChatReply, *every, streams=True))
    async def chat(body: ChatCompletion, request: Request) -> Response:
        return await _answer(requests, body, request)

    @app.post("/v1/completions", responses=answered(TextReply, *every, streams=True))
    async def completions(body: TextCompletion, request: Request) -> Response:
        return await _answer(requests, body, request)

    @app.post("/v1/responses", responses=answered(WholeResponse, *every, streams=True))
    async def responses(body: ResponseRequest, request: Request) -> Response:
        return await _answer(requests, body.chat(), request, ResponseFormat(body))

    instructions = {r.role: r.instructions[0] for r in load_catalog().roles}
    described = json.dumps(reader.describe(requests.limits, instructions)).encode()  # large, and always the same

    @app.get("/v1/persona/space", responses=refused(401))
    async def persona_space() -> Response:
        return Response(described, media_type="application/json")

    @app.post("/v1/persona/project", responses=answered(Projected, *every))
    async def persona_project(body: Conversation) -> dict[str, Any]:
        requests.check_messages(body.messages)
        messages = [m.plain() for m in body.messages]

        def read() -> dict[str, Any]:
            with requests.worker.model_lock.exclusive():
                readings, problem = project(requests.engine, reader.space, messages, reader.rule, requests.context)
            return {"layer": reader.space.layer, "turns": [r.to_dict(True) for r in readings], "problem": problem}

        if len(texts_of(messages)) > CHARACTERS_PROJECTED * requests.context:
            raise BadRequest(
                f"This model's context is {requests.context} tokens; cut the conversation",
                "messages",
                "context_length_exceeded",
            )
        with requests.worker.model_lock.place():  # counted here: a thread to wait in may be long in coming
            projected = await asyncio.to_thread(read)
        if not is_finite(projected):
            raise BadRequest(*LOST[NOT_FINITE])
        return projected


async def _answer(
    requests: Requests, body: Completion, request: Request, answer_format: AnswerFormat | None = None
) -> Response:
    pending = await requests.begin(body, answer_format)
    if body.stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        events = with_keep_alive(requests.stream(pending, body), requests.settings.keep_alive_seconds)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    disconnected = asyncio.create_task(_disconnected(request))
    completion = asyncio.create_task(requests.complete(pending))
    try:
        await asyncio.wait({disconnected, completion}, return_when=asyncio.FIRST_COMPLETED)
        if not completion.done():
            return Response(status_code=499)
        return JSONResponse(completion.result())
    finally:
        for task in (disconnected, completion):
            task.cancel()
        pending.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _states(app: FastAPI, worker: Worker) -> None:
    unwell: dict[int | str, dict[str, Any]] = {
        503: {"description": "Nothing is decoded any more: it ends, to be started again"}
    }

    @app.get("/health", responses=unwell)
    @app.get("/healthz", responses=unwell)
    async def health() -> Response:
        return JSONResponse({"status": "failed" if worker.ended else "ok"}, 503 if worker.ended else 200)

    @app.get("/readyz", responses={503: {"description": "Not any more: it is stopping"}})
    async def ready() -> Response:
        alive = worker.thread.is_alive() and not worker.draining and not worker.ended
        return JSONResponse({"status": "ready" if alive else "not ready"}, 200 if alive else 503)


def _outside(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """What stands before every route, from the inside out: the body's limits, who may come in, other pages' origins."""

    def count(path: str, status: int) -> None:
        if path.startswith("/v1/"):
            metrics.requests.labels("", "", status).inc()

    app.add_middleware(BodyLimit, most=settings.max_body, seconds=settings.body_seconds, refused=count)
    app.add_middleware(Guard, settings=settings, is_open=_is_open, refused=count)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's own clients send headers of theirs
            expose_headers=["retry-after"],
        )


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith("/page/")


def _errors(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    def answer(
        request: Request, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> JSONResponse:
        if request.url.path.startswith("/v1/"):
            metrics.requests.labels("", request.scope["route"].path if "route" in request.scope else "", status).inc()
        return JSONResponse(body, status, headers)

    @app.exception_handler(BadRequest)
    async def bad(request: Request, e: BadRequest) -> JSONResponse:
        return answer(request, e.status, error_body(str(e), error_kind(e.status), e.param, e.code))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, e: RequestValidationError) -> JSONResponse:
        return await bad(request, refusal_of(e.errors()[0]))

    @app.exception_handler(QueueFull)
    async def full(request: Request, _: QueueFull) -> JSONResponse:
        message = f"The queue of {worker.queue} replies is full; try again later"
        headers = {"Retry-After": str(worker.retry_after)}
        return answer(request, 429, error_body(message, "rate_limit_error", None, "queue_full"), headers)

    @app.exception_handler(OutOfMemory)
    async def short(request: Request, e: OutOfMemory) -> JSONResponse:
        return answer(request, 503, error_body(str(e), "server_error", None, "out_of_memory"))

    @app.exception_handler(PersonaSpaceError)
    async def ours(request: Request, e: PersonaSpaceError) -> JSONResponse:
        return answer(request, 400, error_body(str(e), "invalid_request_error"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, e: HTTPException) -> JSONResponse:
        message = str(e.detail)
        if message == "Not Found":
            message = f"There is no {request.method} {request.url.path} here; /openapi.json lists what there is"
        return answer(request, e.status_code, error_body(message, "invalid_request_error"), dict(e.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, e: Exception) -> JSONResponse:
        log.error("a request to %r failed: %s", request.url.path, type(e).__name__)
        return answer(request, 500, error_body("The server failed; its log says why", "server_error"))
