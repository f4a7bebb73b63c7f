"""The `persona` of requests and replies in vLLM's own OpenAI server: an endpoint plugin of vLLM's, whose chat route asks vLLM's
and adds what was read. The reading and holding is the engine's plugin's. Listens to the network through vLLM alone."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError

from personaspace.catalog import load_catalog
from personaspace.engines.vllm import plugin
from personaspace.engines.vllm.ask import FIELD
from personaspace.engines.vllm.wire import Reading, gathered
from personaspace.interventions import Intervention
from personaspace.serve.metrics import PersonaMetrics
from personaspace.serve.persona import BadRequest, Reader
from personaspace.serve.schema import Persona
from personaspace.space import PersonaSpace

SPACE = "PERSONASPACE_SPACE"
"""The environment's name for the space that the server reads by."""


class Persons:
    """What the routes share: the space, the engine's client, the metrics, and which interventions the workers know."""

    def __init__(self, space: PersonaSpace, name: str, client: Any) -> None:
        self.reader, self.client = Reader.of(space, name), client
        self.workers, self.metrics = plugin.Told(), PersonaMetrics(space)

    async def ask(self, model: str, wanted: Persona) -> dict[str, Any]:
        """What vLLM's request carries for a `persona`. Raises `BadRequest`."""
        interventions = self.reader.interventions(model, wanted)
        await self._define(interventions)
        names = [i.key for i in interventions]
        return {
            "key": uuid.uuid4().hex,
            "read": [self.reader.space.layer],
            "project": wanted.report == "token",
            "interventions": names,
        }

    async def aim(self) -> None:
        """Tells the workers of the axis: tokens are projected on it."""
        axis = json.dumps(self.reader.space.axis_at().tolist())
        await self.client.collective_rpc("personaspace_aim", args=(axis,))

    async def _define(self, interventions: Sequence[Intervention]) -> None:
        if news := self.workers.news(interventions):
            await self.client.collective_rpc("personaspace_define", args=(news,))
            self.workers.known(interventions)

    async def read(self, key: str, again: bool = False) -> Reading | None:
        """What was read of a reply; `again`: since it was last asked for. None where no token was read."""
        found = gathered(await self.client.collective_rpc("personaspace_take", args=([key], again))).get(key)
        return found if found is not None and int(found.tokens[0]) else None

    def turn(self, model: str, reading: Reading | None, wanted: Persona) -> dict[str, Any] | None:
        """A whole reply's `persona`."""
        if reading is None:
            return None
        found = self.reader.turn(
            reading.activation[0, 0], int(reading.tokens[0]), int(reading.touched[0]), wanted.history
        )
        self.metrics.reply(model, found)
        return found


def tokens_of(reading: Reading | None, first: int = 0) -> list[dict[str, Any]]:
    """Tokens' projections, of which the first is token number `first` of the reply."""
    if reading is None or reading.each is None:
        return []
    along, moved = reading.each.tolist()
    return [
        {"index": first + k, "projection": p, "capped": bool(m)}
        for k, (p, m) in enumerate(zip(along, moved, strict=True))
    ]


class Endpoints:
    """vLLM's contract for an endpoint plugin."""

    name = "personaspace"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Takes the place of vLLM's chat route, and adds the space's."""
        app.post("/v1/chat/completions")(chat)
        app.get("/v1/persona/space")(persona_space)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Reads the space that the environment names."""
        space = PersonaSpace.load(os.environ[SPACE])
        name = (args.served_model_name or [args.model])[0]
        state.personaspace = Persons(space, name, engine_client)
        await state.personaspace.aim()


async def chat(raw_request: Request) -> Any:
    """vLLM's chat completion, with `persona` understood and told."""
    from vllm.entrypoints.openai.chat_completion import api_router
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    persons: Persons = raw_request.app.state.personaspace
    try:
        body = await raw_request.json()
        wanted = Persona.model_validate(body.pop("persona", None) or {})
        model = body.get("model") or persons.reader.name
        ask = await persons.ask(model, wanted)
        body["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), FIELD: json.dumps(ask)}
        request = ChatCompletionRequest.model_validate(body)
    except BadRequest as e:
        return _refused(str(e), e.param, e.status)
    except (ValidationError, ValueError, AttributeError) as e:
        return _refused(str(e), None, 400)
    answer = await api_router.create_chat_completion(request, raw_request=raw_request)
    if isinstance(answer, StreamingResponse):
        answer.body_iterator = _streamed(answer.body_iterator, persons, model, ask["key"], wanted)
        return answer
    if answer.status_code != 200:
        return answer
    reading = await persons.read(ask["key"])
    told = persons.turn(model, reading, wanted)
    if told is not None and wanted.report == "token":
        told["tokens"] = tokens_of(reading)
    return JSONResponse({**json.loads(bytes(answer.body)), "persona": told})


async def persona_space(raw_request: Request) -> dict[str, Any]:
    """The space as a page draws it."""
    persons: Persons = raw_request.app.state.personaspace
    roles = {r.role: r.instructions[0] for r in load_catalog().roles}
    return persons.reader.describe({}, roles)


async def _streamed(chunks: Any, persons: Persons, model: str, key: str, wanted: Persona) -> AsyncIterator[Any]:
    """vLLM's events, and before the last one a chunk that tells the persona. Where tokens are wanted, each event has those that
    were read since the one before."""
    head: dict[str, Any] = {}
    sofar: Reading | None = None
    each = wanted.report == "token"
    async for chunk in chunks:
        text = chunk if isinstance(chunk, str) else bytes(chunk).decode()
        if text.startswith("data: {") and (each or not head):
            event = json.loads(text.removeprefix("data: "))
            head = {name: event.get(name) for name in ("id", "object", "created", "model")}
            if each and (new := await persons.read(key, again=True)) is not None:
                tokens = tokens_of(new, int(sofar.tokens[0]) if sofar else 0)
                sofar = sofar.then(new) if sofar else new
                event["persona"] = {
                    **persons.reader.reading(sofar.activation[0, 0], int(sofar.tokens[0])),
                    "tokens": tokens,
                }
                chunk = f"data: {json.dumps(event)}\n\n"
        elif text.startswith("data: [DONE]"):
            last = await persons.read(key)
            told = persons.turn(model, sofar.then(last) if sofar and last else sofar or last, wanted)
            if told is not None and each:
                told["tokens"] = tokens_of(last, int(sofar.tokens[0]) if sofar else 0)
            yield f"data: {json.dumps({**head, 'choices': [], 'persona': told})}\n\n"
        yield chunk


def _refused(message: str, param: str | None, status: int) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def command(
    space: str, layer: int, folder: str, names: Sequence[str], options: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The command that starts vLLM's server with the extension, and its environment. space: a space's file or folder; layer:
    the one that it is read at."""
    allowed = [p for p in os.environ.get("VLLM_PLUGINS", "").split(",") if p]
    where = str(Path(space).resolve()) if Path(space).exists() else space
    environment = {
        **os.environ,
        SPACE: where,
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
        *names,
    ]
    return [*program, *options], environment
