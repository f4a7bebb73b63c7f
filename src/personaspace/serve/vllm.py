"""The `persona` of requests and replies in vLLM's own OpenAI server: an endpoint plugin of vLLM's, whose chat route asks vLLM's
and adds what was read. The reading and holding is the engine's plugin's. Listens to the network through vLLM alone."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from personaspace.catalog import load_catalog
from personaspace.engines import ModelInfo
from personaspace.engines.chat import Chat
from personaspace.engines.vllm import checkpoint
from personaspace.engines.vllm.admission import CLIENT, serve_caps
from personaspace.engines.vllm.limits import VllmModelShape
from personaspace.engines.vllm.request import FIELD
from personaspace.errors import PersonaSpaceError
from personaspace.formats.vectors import with_vectors
from personaspace.model.loading import load_tokenizer
from personaspace.serve.followed import FollowedReply
from personaspace.serve.guard import Guard
from personaspace.serve.keep_alive import with_keep_alive
from personaspace.serve.refusals import BadRequest, error_body, error_kind, refusal_of
from personaspace.serve.replies import CompletedReply, ReplyFormat, ReplyStep
from personaspace.serve.responses import ResponseRequest
from personaspace.serve.settings import Settings, WatchSettings, hash_key
from personaspace.serve.types import Persona
from personaspace.serve.vllm_bodies import as_rendered_here, as_vllm_takes, cut_to_fit
from personaspace.serve.vllm_persona import VllmPersona
from personaspace.serve.vllm_responses import as_response
from personaspace.serve.watch import STOPPED, Act
from personaspace.space import PersonaSpace

log = getLogger("vllm.personaspace")
SPACE = "PERSONASPACE_SPACE"
"""The environment's name for the space that the server reads by."""

OUTSIDE = "PERSONASPACE_OUTSIDE"
"""The environment's name for who may come in: digests of keys, names, origins, as JSON."""


WATCHED = "PERSONASPACE_WATCHED"
"""The environment's name for what `WatchSettings` has but the secret, and for files of vectors, as JSON."""


class VllmGuard:
    """Middleware before every route of vLLM's server, its own as well: the key, the Host, the body's type (see `Guard`); and it
    says who asks, by the key or the address, so that a client has its share alone of what there is few of. vLLM takes
    middleware by its name, so the settings come by the environment."""

    def __init__(self, app: ASGIApp) -> None:
        outside = json.loads(os.environ[OUTSIDE])
        settings = Settings(
            keys=tuple(outside["keys"]), hosts=tuple(outside["hosts"]), origins=tuple(outside["origins"])
        )
        self.guard = Guard(app, settings, lambda path: path == "/health", any_type=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            key = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            address = (scope.get("client") or ("unknown",))[0]
            CLIENT.set(hash_key(key)[:16] if self.guard.settings.keys else address)
        await self.guard(scope, receive, send)


class Endpoints:
    """vLLM's contract for an endpoint plugin."""

    name = "personaspace"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Takes the place of vLLM's routes of completions and list of models, and adds the space's."""
        app.post("/v1/chat/completions")(chat)
        app.post("/v1/completions")(text)
        app.post("/v1/responses")(responses)
        app.get("/v1/models")(models)
        app.get("/v1/persona/space")(persona_space)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Reads the space that the environment names. Raises `SpaceError` where it is of a model of other shapes."""
        watched = json.loads(os.environ.get(WATCHED, "{}"))
        space, _ = with_vectors(PersonaSpace.load(os.environ[SPACE]), watched.pop("vectors", ()))
        name = (args.served_model_name or [args.model])[0]
        serve_caps(space.cap(cap) for cap in space.caps)
        tokenizer = load_tokenizer(engine_client.vllm_config.model_config.tokenizer, name)
        rendered = Chat(tokenizer, **space.thinking_options)
        served = _served(name, engine_client.vllm_config, rendered.thinking_rule)
        if warning := space.check_model(served):
            log.warning("%s", warning)
        why = next(filter(None, await engine_client.collective_rpc("personaspace_why_not")), "")
        context = engine_client.vllm_config.model_config.max_model_len
        state.personaspace = VllmPersona(space, name, engine_client, why, rendered, WatchSettings.of(watched), context)
        if not why:
            await state.personaspace.aim()


def _served(name: str, vllm_config: Any, thinking: str | None = None) -> ModelInfo:
    """The model that vLLM serves, as a space knows models."""
    config, shape = vllm_config.model_config, VllmModelShape.of(vllm_config)
    folder = Path(config.model)
    fingerprint = checkpoint.of_config(vllm_config, folder) if folder.is_dir() else ""
    notes = {"thinking": thinking} if thinking else {}
    return ModelInfo(name, None, shape.layers, shape.hidden, str(config.dtype), fingerprint, "", notes=notes)


async def models(raw_request: Request) -> Any:
    """vLLM's list, and the model under the name of each cap: chat knows those."""
    from vllm.entrypoints.openai.models import api_router

    vllm_persona: VllmPersona = raw_request.app.state.personaspace
    answer = await api_router.show_available_models(raw_request)
    listed = json.loads(bytes(answer.body))
    served_model = next(m for m in listed["data"] if m["id"] == vllm_persona.reader.name)
    listed["data"] += [
        {**served_model, "id": name} for name in vllm_persona.reader.models if name != served_model["id"]
    ]
    return JSONResponse(listed)


async def chat(raw_request: Request) -> Any:
    """vLLM's chat completion, with `persona` understood and told."""
    return await _answer(raw_request, True)


async def text(raw_request: Request) -> Any:
    """vLLM's text completion, likewise."""
    return await _answer(raw_request, False)


async def responses(raw_request: Request) -> Any:
    """A chat completion in the shape of the Responses API; vLLM's own route of it would neither read nor hold."""
    try:
        request = ResponseRequest.model_validate(await raw_request.json())
    except ValueError as e:  # a `ValidationError` is one
        return _invalid(e)
    fields = request.chat_body()
    messages = [message.plain() for message in fields["messages"]]
    more = {"stream_options": {"include_usage": True}} if request.stream else {}  # a response always tells its usage
    return await as_response(request, await _answer(raw_request, True, {**fields, "messages": messages, **more}))


async def _answer(raw_request: Request, is_chat: bool, body: Any = None) -> Any:
    """vLLM's answer to the request, or to a body in its place, with `persona` understood and told."""
    vllm_persona: VllmPersona = raw_request.app.state.personaspace
    try:
        body = await raw_request.json() if body is None else body
        if not isinstance(body, dict) or not isinstance(body.get("vllm_xargs") or {}, dict):
            raise BadRequest("expected an object, with an object as its vllm_xargs if it has one")
        persona = Persona.model_validate(body.pop("persona", None) or {})
        model = body.get("model") or vllm_persona.reader.name
        body = as_vllm_takes(body)
        if vllm_persona.chat is not None:
            body = as_rendered_here(body, vllm_persona.chat) if is_chat else body
            size = len(await raw_request.body())
            body = await asyncio.to_thread(cut_to_fit, body, vllm_persona.chat, vllm_persona.context, size)
        interventions, act = vllm_persona.reader.treatment(model, persona)
        fields = await vllm_persona.request_fields(interventions, persona, body)
        reply = vllm_persona.follow(body, fields) if is_chat else None
        if fields:
            body["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), FIELD: json.dumps(fields)}
        # The names of caps are known here alone: on vLLM's other routes they would be answered, and not held.
        create, request_type = _of_vllm(is_chat)
        request = request_type.model_validate({**body, "model": vllm_persona.reader.name})
    except BadRequest as e:
        return _refused(e)
    except (ValueError, TypeError, PersonaSpaceError) as e:
        return _invalid(e)
    vllm_persona.metrics.act(model, act)
    if act == "stop":
        return _stopped(model, body, is_chat)
    answer = await create(request, raw_request=raw_request)
    key = (fields or {}).get("key", "")
    if answer is None:  # the client is gone
        if key:
            vllm_persona.drop(key)
        return Response(status_code=499)
    if isinstance(answer, StreamingResponse):
        events = _streamed(answer.body_iterator, vllm_persona, model, fields, persona, reply, act)
        answer.body_iterator = with_keep_alive(events, Settings.keep_alive_seconds)
        return answer
    if answer.status_code != 200:
        return answer
    payload = json.loads(bytes(answer.body))
    if reply is not None:
        reply.take(payload)
    turn = await vllm_persona.ended(model, fields, persona, reply, payload["id"], act) if fields and key else None
    several = {"personas": [None] * len(payload["choices"])} if len(payload["choices"]) > 1 else {}  # not read
    return JSONResponse({**payload, "model": model, "persona": turn, **several})


def _of_vllm(is_chat: bool) -> tuple[Any, Any]:
    """vLLM's own function that answers, and the type of request that it takes."""
    if is_chat:
        from vllm.entrypoints.openai.chat_completion import api_router as chat_router
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        return chat_router.create_chat_completion, ChatCompletionRequest
    from vllm.entrypoints.openai.completion import api_router
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return api_router.create_completion, CompletionRequest


def _stopped(model: str, body: dict[str, Any], is_chat: bool = True) -> Response:
    """The answer to a conversation that an alert ended; nothing is computed for it."""
    answer = ReplyFormat(is_chat, model, lambda _: "", str, lambda _: b"")
    replies = [CompletedReply(0, [], finish="content_filter", note=STOPPED)]
    if not body.get("stream"):
        return JSONResponse(answer.completion(replies))
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    step = ReplyStep("", "", None, True, slice(0))
    events = [*answer.step(replies[0], step), *answer.closing(replies, usage)]
    return Response("".join(events), media_type="text/event-stream")


async def persona_space(raw_request: Request) -> dict[str, Any]:
    """The space as a page draws it."""
    vllm_persona: VllmPersona = raw_request.app.state.personaspace
    roles = {r.role: r.instructions[0] for r in load_catalog().roles}
    return vllm_persona.reader.describe({}, roles)


async def _streamed(
    chunks: Any,
    vllm_persona: VllmPersona,
    model: str,
    fields: dict[str, Any] | None,
    persona: Persona,
    reply: FollowedReply | None = None,
    act: Act | None = None,
) -> AsyncGenerator[Any, None]:
    """vLLM's events under the model's name; the one with which the reply ends tells its persona, and where tokens are wanted,
    each event has those that were read since the one before."""
    key = (fields or {}).get("key", "")
    finished = not key
    try:
        async for chunk in chunks:
            line = chunk if isinstance(chunk, str) else bytes(chunk).decode()
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                event.update({"model": model} if "model" in event else {})
                if reply is not None:
                    reply.take(event)
                ends = any(choice.get("finish_reason") for choice in event.get("choices", ()))
                if not finished and fields and ends:
                    event["persona"] = await vllm_persona.ended(model, fields, persona, reply, event["id"], act)
                    finished = True
                elif (
                    not finished
                    and persona.report == "token"
                    and (means := await vllm_persona.read(key, "continue")) is not None
                    and (so_far := vllm_persona.so_far(means, reply))
                ):
                    event["persona"] = so_far
                chunk = f"data: {json.dumps(event, allow_nan=False)}\n\n"
            yield chunk
    finally:
        if not finished:
            vllm_persona.drop(key)


def _refused(e: BadRequest) -> JSONResponse:
    return JSONResponse(error_body(str(e), error_kind(e.status), e.param, e.code), e.status)


def _invalid(error: Exception) -> JSONResponse:
    """What a body is refused for that is not as its type says."""
    if not isinstance(error, ValidationError):
        return _refused(BadRequest(str(error)))
    return _refused(refusal_of(error.errors()[0]))


def command(
    space: str,
    layer: int,
    folder: str,
    name: str,
    options: Sequence[str],
    settings: Settings,
    vectors: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """The command that starts vLLM's server with the extension, and its environment, which has keys' digests and no key. space:
    a space's file or folder; layer: the one that it is read at; settings: who may come in, and what is
    watched; vectors: files of vectors of one's own."""
    allowed = [p for p in os.environ.get("VLLM_PLUGINS", "").split(",") if p]
    space_path = str(Path(space).resolve()) if Path(space).exists() else space
    environment = {
        **{variable: text for variable, text in os.environ.items() if variable != "PERSONASPACE_API_KEY"},
        SPACE: space_path,
        OUTSIDE: json.dumps({"keys": settings.keys, "hosts": settings.hosts or (), "origins": settings.origins}),
        WATCHED: json.dumps(
            {
                **{name: value for name, value in asdict(settings.watch).items() if name != "secret"},
                "vectors": [str(Path(file).resolve()) for file in vectors],
            }
        ),
        "PERSONASPACE_VLLM_PROJECT": str(layer),
        "VLLM_PLUGINS": ",".join(dict.fromkeys([*allowed, "personaspace"])),
    }
    # The module and not `vllm serve`: in the CPU build the command asks for a version that its package does not have.
    program = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        folder,
        "--served-model-name",
        name,
        f"--middleware={VllmGuard.__module__}.{VllmGuard.__qualname__}",
    ]
    # A request that does not say how to draw gets OpenAI's defaults, as from our own server; the model's stop tokens stay.
    own_defaults = [] if any(o.startswith("--generation-config") for o in options) else ["--generation-config=vllm"]
    return [*program, *own_defaults, *options], environment
