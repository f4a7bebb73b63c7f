"""The `persona` of requests and replies in vLLM's own OpenAI server: an endpoint plugin of vLLM's, whose chat route asks vLLM's
and adds what was read. The reading and holding is the engine's plugin's. Listens to the network through vLLM alone."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
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
from personaspace.engines.vllm import checkpoint, plugin
from personaspace.engines.vllm.admission import CLIENT, serve_caps
from personaspace.engines.vllm.limits import VllmModelShape
from personaspace.engines.vllm.readout import TakeMode
from personaspace.engines.vllm.request import FIELD
from personaspace.engines.vllm.wire import ReadMeans, gathered
from personaspace.errors import UsageError
from personaspace.model.interventions import Intervention
from personaspace.model.loading import load_tokenizer
from personaspace.serve.followed import FollowedReply, tokens_of
from personaspace.serve.guard import Guard
from personaspace.serve.keep_alive import with_keep_alive
from personaspace.serve.metrics import PersonaMetrics
from personaspace.serve.persona import BadRequest, Reader, is_finite
from personaspace.serve.settings import Settings, hash_key
from personaspace.serve.thinking import as_rendered_here
from personaspace.serve.types import Persona
from personaspace.space import PersonaSpace

log = getLogger("vllm.personaspace")
SPACE = "PERSONASPACE_SPACE"
"""The environment's name for the space that the server reads by."""

OUTSIDE = "PERSONASPACE_OUTSIDE"
"""The environment's name for who may come in: digests of keys, names, origins, as JSON."""


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


class VllmPersona:
    """What the routes share: the space, the engine's client, the metrics, and which interventions the workers have.
    why_not: why nothing can be read or held; then plain requests alone are answered. chat: how messages become text, by which
    strangers' markers and thinking are the same here as elsewhere."""

    def __init__(
        self, space: PersonaSpace, name: str, client: Any, why_not: str = "", chat: Chat | None = None
    ) -> None:
        self.chat = chat
        self.reader, self.client, self.why_not = Reader.of(space, name), client, why_not
        self.registry, self.metrics = plugin.InterventionRegistry(), PersonaMetrics(space)
        self._dropping: set[asyncio.Task[Any]] = set()

    async def request_fields(self, model: str, persona: Persona, body: dict[str, Any]) -> dict[str, Any] | None:
        """What vLLM's request carries for a `persona`; None where a plain one is not read. Raises `BadRequest`."""
        interventions = self.reader.interventions(model, persona)
        reason = self.why_not
        if body.get("use_beam_search"):
            reason = "a reply of a beam search is not read or held"
        elif body.get("n") not in (None, 1):
            reason = "of several replies to one request none is read or held; send one request each"
        if reason and (interventions or persona != Persona()):
            raise BadRequest(reason, "persona")
        if reason:
            return None
        try:
            await self._define(interventions)
        except UsageError as e:
            raise BadRequest(str(e), "persona") from None
        names = [i.key for i in interventions]
        return {
            "key": uuid.uuid4().hex,
            "read": [self.reader.space.layer],
            "project": persona.report == "token",
            "interventions": names,
        }

    async def aim(self) -> None:
        """Tells the workers of the axis: tokens are projected on it."""
        axis = json.dumps(self.reader.space.axis_at().tolist())
        await self.client.collective_rpc("personaspace_aim", args=(axis,))

    async def _define(self, interventions: Sequence[Intervention]) -> None:
        if definitions := self.registry.unsent(interventions):
            await self.client.collective_rpc("personaspace_define", args=(definitions,))
            self.registry.mark_sent(interventions)

    async def read(self, key: str, mode: TakeMode = "final") -> ReadMeans | None:
        """What was read of a reply, with the projections since it was last asked for. None where no token was read."""
        means = gathered(await self.client.collective_rpc("personaspace_take", args=([key], mode))).get(key)
        return means if means is not None and int(means.tokens[0]) else None

    def follow(self, body: dict[str, Any], fields: dict[str, Any] | None) -> FollowedReply | None:
        """Who follows a reply that may have thoughts before its answer, for which vLLM is asked for its token ids."""
        if self.chat is None or not self.chat.thinks or fields is None:
            return None
        tells_ids = bool(body.get("return_token_ids"))
        body["return_token_ids"] = True
        return FollowedReply(self.chat, tells_ids)

    async def ended(
        self, model: str, fields: dict[str, Any], persona: Persona, reply: FollowedReply | None
    ) -> dict[str, Any] | None:
        """A whole reply's `persona`: of its answer, which is read once more where there were thoughts before it."""
        means = await self.read(fields["key"])
        if means is None or reply is None:
            return self.turn(model, means, persona)
        tokens = reply.tokens(tokens_of(means), final=True)
        count = int(means.tokens[0])
        start, end = reply.answer(count)
        if start == end:
            return None
        span = "answer"
        if (start, end) != (0, count):
            try:
                means = await self._read_again(fields, reply, start, end)
            except Exception:
                log.exception("the answer alone could not be read; persona is of all that was generated")
                span = "all"
        turn = self.turn(model, means, persona, tokens)
        return turn and {**turn, "span": span}

    async def _read_again(self, fields: dict[str, Any], reply: FollowedReply, start: int, end: int) -> ReadMeans | None:
        """What is read of a reply's tokens from start to end, in a pass of its own over them."""
        from vllm import SamplingParams

        key, first = uuid.uuid4().hex, len(reply.prompt_ids)
        # What was generated before the answer is generated to interventions, too.
        spans = [[first, first + start]] * (start > 0) + [[first + start, first + end]]
        answer_fields = {**fields, "key": key, "spans": spans, "project": False}
        params = SamplingParams(
            max_tokens=1, temperature=0, detokenize=False, extra_args={FIELD: json.dumps(answer_fields)}
        )
        prompt = {"prompt_token_ids": [*reply.prompt_ids, *reply.ids[:end]]}
        async for _ in self.client.generate(prompt, params, f"personaspace-{key}"):
            pass
        means = gathered(await self.client.collective_rpc("personaspace_take", args=([key], "final")))[key]
        last = slice(len(spans) - 1, None)
        return replace(
            means,
            activation=means.activation[last],
            norms=means.norms[last],
            tokens=means.tokens[last],
            touched=means.touched[last],
        )

    def drop(self, key: str) -> None:
        """Nobody waits for that reply any more: its reading is let go of."""
        task = asyncio.get_running_loop().create_task(self.read(key))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    def turn(
        self, model: str, means: ReadMeans | None, persona: Persona, tokens: list[dict[str, Any]] | None = None
    ) -> dict[str, Any] | None:
        """A whole reply's `persona`, with the tokens that were not told yet where tokens are wanted; None for those read."""
        if means is None:
            return None
        turn = self.reader.turn(means.activation[0, 0], int(means.tokens[0]), int(means.touched[0]), persona.history)
        if not is_finite(turn):  # JSON has no NaN, and a metric's sum would keep it
            return None
        self.metrics.reply(model, turn)
        untold = tokens_of(means) if tokens is None else tokens
        return turn and {**turn, **({"tokens": untold} if persona.report == "token" else {})}

    def so_far(self, means: ReadMeans, reply: FollowedReply | None = None) -> dict[str, Any]:
        """Of a reply in the making; of one that may have thoughts, the answer's tokens alone."""
        if reply is not None:
            tokens = reply.tokens(tokens_of(means))
            return {"tokens": tokens} if tokens else {}
        reading_fields = self.reader.reading(means.activation[0, 0], int(means.tokens[0]))
        return {**reading_fields, "tokens": tokens_of(means)}


class Endpoints:
    """vLLM's contract for an endpoint plugin."""

    name = "personaspace"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Takes the place of vLLM's routes of completions and list of models, and adds the space's."""
        app.post("/v1/chat/completions")(chat)
        app.post("/v1/completions")(text)
        app.get("/v1/models")(models)
        app.get("/v1/persona/space")(persona_space)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Reads the space that the environment names. Raises `SpaceError` where it is of a model of other shapes."""
        space = PersonaSpace.load(os.environ[SPACE])
        name = (args.served_model_name or [args.model])[0]
        serve_caps(space.cap(cap) for cap in space.caps)
        tokenizer = load_tokenizer(engine_client.vllm_config.model_config.tokenizer, name)
        rendered = Chat(tokenizer, **space.thinking_options)
        served = _served(name, engine_client.vllm_config, rendered.thinking_rule)
        if warning := space.check_model(served):
            log.warning("%s", warning)
        why = next(filter(None, await engine_client.collective_rpc("personaspace_why_not")), "")
        state.personaspace = VllmPersona(space, name, engine_client, why, rendered)
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
    from vllm.entrypoints.openai.chat_completion import api_router
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    vllm_persona: VllmPersona = raw_request.app.state.personaspace
    try:
        body = await raw_request.json()
        if not isinstance(body, dict) or not isinstance(body.get("vllm_xargs") or {}, dict):
            raise BadRequest("expected an object, with an object as its vllm_xargs if it has one")
        persona = Persona.model_validate(body.pop("persona", None) or {})
        model = body.get("model") or vllm_persona.reader.name
        if vllm_persona.chat is not None:
            body = as_rendered_here(body, vllm_persona.chat)
        fields = await vllm_persona.request_fields(model, persona, body)
        reply = vllm_persona.follow(body, fields)
        if fields:
            body["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), FIELD: json.dumps(fields)}
        # The names of caps are known here alone: on vLLM's other routes they would be answered, and not held.
        request = ChatCompletionRequest.model_validate({**body, "model": vllm_persona.reader.name})
    except BadRequest as e:
        return _refused(str(e), e.param, e.status)
    except (ValidationError, ValueError, TypeError) as e:
        return _refused(str(e), None, 400)
    answer = await api_router.create_chat_completion(request, raw_request=raw_request)
    key = fields["key"] if fields else ""
    if answer is None:  # the client is gone
        if key:
            vllm_persona.drop(key)
        return Response(status_code=499)
    if isinstance(answer, StreamingResponse):
        events = _streamed(answer.body_iterator, vllm_persona, model, fields, persona, reply)
        answer.body_iterator = with_keep_alive(events, Settings.keep_alive_seconds)
        return answer
    if answer.status_code != 200:
        return answer
    payload = json.loads(bytes(answer.body))
    if reply is not None:
        reply.take(payload)
    turn = await vllm_persona.ended(model, fields, persona, reply) if fields else None
    return JSONResponse({**payload, "model": model, "persona": turn})


async def text(raw_request: Request) -> Any:
    """vLLM's text completion, which is neither read nor held: a request for that is refused."""
    try:
        body = await raw_request.json()
        if isinstance(body, dict) and body.pop("persona", None) is not None:
            return _refused(
                "vLLM's server reads and holds chats alone: /v1/chat/completions takes persona", "persona", 400
            )
        from vllm.entrypoints.openai.completion import api_router
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        request = CompletionRequest.model_validate(body)
    except (ValidationError, ValueError, TypeError) as e:
        return _refused(str(e), None, 400)
    answer = await api_router.create_completion(request, raw_request=raw_request)
    return Response(status_code=499) if answer is None else answer


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
) -> AsyncGenerator[Any, None]:
    """vLLM's events under the model's name; the one with which the reply ends tells its persona, and where tokens are wanted,
    each event has those that were read since the one before."""
    finished, key = fields is None, fields["key"] if fields else ""
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
                    event["persona"] = await vllm_persona.ended(model, fields, persona, reply)
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


def _refused(message: str, param: str | None, status: int) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def command(
    space: str, layer: int, folder: str, name: str, options: Sequence[str], settings: Settings
) -> tuple[list[str], dict[str, str]]:
    """The command that starts vLLM's server with the extension, and its environment, which has keys' digests and no key. space:
    a space's file or folder; layer: the one that it is read at; settings: who may come in."""
    allowed = [p for p in os.environ.get("VLLM_PLUGINS", "").split(",") if p]
    space_path = str(Path(space).resolve()) if Path(space).exists() else space
    environment = {
        **{variable: text for variable, text in os.environ.items() if variable != "PERSONASPACE_API_KEY"},
        SPACE: space_path,
        OUTSIDE: json.dumps({"keys": settings.keys, "hosts": settings.hosts or (), "origins": settings.origins}),
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
    return [*program, *options], environment
