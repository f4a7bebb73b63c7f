"""What the routes of vLLM's own server share: a request's `persona` as its engine takes it, and a reply's as it was read."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger
from typing import Any

from personaspace.engines.chat import Chat
from personaspace.engines.vllm import plugin
from personaspace.engines.vllm.readout import TakeMode
from personaspace.engines.vllm.request import FIELD
from personaspace.engines.vllm.wire import ReadMeans, gathered
from personaspace.errors import UsageError
from personaspace.model.interventions import Intervention
from personaspace.serve.followed import FollowedReply, tokens_of
from personaspace.serve.metrics import PersonaMetrics
from personaspace.serve.persona import Reader, is_finite
from personaspace.serve.refusals import BadRequest
from personaspace.serve.settings import WatchSettings
from personaspace.serve.types import Persona
from personaspace.serve.vllm_bodies import continued_text, prompts_of
from personaspace.serve.watch import Act
from personaspace.serve.webhook import teller
from personaspace.space import PersonaSpace

log = getLogger("vllm.personaspace")


class VllmPersona:
    """What the routes share: the space, the engine's client, the metrics, and which interventions the workers have.
    why_not: why nothing can be read or held; then plain requests alone are answered. chat: how messages become text, by which
    strangers' markers and thinking are the same here as elsewhere; context: how many tokens a prompt and its reply may have."""

    def __init__(
        self,
        space: PersonaSpace,
        name: str,
        client: Any,
        why_not: str = "",
        chat: Chat | None = None,
        watch: WatchSettings | None = None,
        context: int = 0,
    ) -> None:
        self.chat, self.context = chat, context
        self.reader, self.client, self.why_not = Reader.of(space, name, watch), client, why_not
        self.registry, self.metrics = plugin.InterventionRegistry(), PersonaMetrics(space)
        self.tell_alerts = teller(self.reader.watch, self.metrics)
        self._dropping: set[asyncio.Task[Any]] = set()

    async def request_fields(
        self, interventions: Sequence[Intervention], persona: Persona, body: dict[str, Any]
    ) -> dict[str, Any] | None:
        """What vLLM's request carries for a `persona`; None where a plain one is not read. Raises `BadRequest`."""
        reason = self.why_not
        if body.get("use_beam_search"):
            reason = "a reply of a beam search is not read or held"
        elif body.get("n") not in (None, 1):
            reason = "of several replies to one request none is read or held; send one request each"
        if reason and (interventions or persona != Persona()):
            raise BadRequest(reason, "persona")
        own_wish = FIELD in (body.get("vllm_xargs") or {})
        if own_wish and (interventions or persona != Persona()):
            message = f"vllm_xargs has {FIELD!r} in it, and the model's name or `persona` asks for something as well"
            raise BadRequest(f"{message}; leave out either", "vllm_xargs")
        if reason or own_wish:
            return None
        try:
            await self._define(interventions)
        except UsageError as e:
            raise BadRequest(str(e), "persona") from None
        names = [i.key for i in interventions]
        if len(prompts_of(body.get("prompt"))) > 1:
            if persona.model_copy(update={"cap": None, "steer": []}) != Persona():
                raise BadRequest("of several prompts in one request none is read; send one request each", "persona")
            return {"interventions": names} if names else None
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
        return FollowedReply(self.chat, tells_ids, continued_text(body))

    async def ended(
        self,
        model: str,
        fields: dict[str, Any],
        persona: Persona,
        reply: FollowedReply | None,
        reply_id: str = "",
        act: Act | None = None,
    ) -> dict[str, Any] | None:
        """A whole reply's `persona`: of its answer, which is read once more where there were thoughts before it."""
        means = await self.read(fields["key"])
        if means is None or reply is None:
            return self.turn(model, means, persona, None, reply_id, act)
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
        turn = self.turn(model, means, persona, tokens, reply_id, act)
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
        self,
        model: str,
        means: ReadMeans | None,
        persona: Persona,
        tokens: list[dict[str, Any]] | None = None,
        reply_id: str = "",
        act: Act | None = None,
    ) -> dict[str, Any] | None:
        """A whole reply's `persona`, with the tokens that were not told yet where tokens are wanted, None for those read;
        alerts that begin with it are told to whom they are sent."""

        if means is None:
            return None
        turn = self.reader.turn(means.activation[0, 0], int(means.tokens[0]), int(means.touched[0]), persona, act)
        if turn is not None and not is_finite(turn.persona):  # JSON has no NaN, and a metric's sum would keep it
            return None
        self.metrics.reply(model, turn)
        self.tell_alerts(model, reply_id, turn, persona)
        if turn is None:
            return None
        untold = tokens_of(means) if tokens is None else tokens
        return {**turn.persona, **({"tokens": untold} if persona.report == "token" else {})}

    def so_far(self, means: ReadMeans, reply: FollowedReply | None = None) -> dict[str, Any]:
        """Of a reply in the making; of one that may have thoughts, the answer's tokens alone."""
        if reply is not None:
            tokens = reply.tokens(tokens_of(means))
            return {"tokens": tokens} if tokens else {}
        reading_fields = self.reader.reading(means.activation[0, 0], int(means.tokens[0]))
        return {**reading_fields, "tokens": tokens_of(means)}
