"""Replies of a sweep, kept while it lasts, so that one that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, NonNegativeInt, ValidationError

from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.files import Place
from personaspace.runs.digests import fault_of, write_recorded

BLOCK = 128
"""Replies that are asked for, and kept, together. A block's replies are asked for side by side and beside no others, so that
they are the same whether the blocks before were answered now or the day before."""


@dataclass(frozen=True)
class KeptReply:
    """What is kept of a response: what it answers, its token ids, and the answer's text."""

    prompt: Prompt
    token_ids: tuple[int, ...]
    text: str


class _Reply(BaseModel, frozen=True, extra="forbid", strict=True):
    token_ids: list[NonNegativeInt]
    text: str


class _Block(BaseModel, frozen=True, extra="forbid", strict=True):
    replies: list[_Reply]


def forget(folder: Path) -> None:
    """Takes away what was kept: what it was kept for is written. What can't be taken away is in nobody's way."""
    shutil.rmtree(folder, ignore_errors=True)


class KeptReplies:
    """Answers prompts by an engine, block by block, and keeps each block as soon as it is answered. folder: where; None keeps
    nothing. A block is known by all that its replies depend on, so that a sweep with other options takes what is the same."""

    def __init__(self, engine: Engine, folder: Path | None) -> None:
        self.engine = engine
        self.place = Place(folder) if folder else None

    def respond(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[KeptReply]:
        """A reply to each prompt, within a block in the engine's order. Raises `RunError` where a block can't be written."""
        for start in range(0, len(prompts), BLOCK):
            block = prompts[start : start + BLOCK]
            name = self._name(block, sampling)
            if kept := self._read(name, len(block)):
                yield from (KeptReply(p, tuple(r.token_ids), r.text) for p, r in zip(block, kept.replies, strict=True))
                continue
            by_prompt: dict[int, _Reply] = {}
            places = {id(prompt): k for k, prompt in enumerate(block)}
            for response in self.engine.respond(block, sampling):
                by_prompt[places[id(response.prompt)]] = _Reply(token_ids=list(response.token_ids), text=response.text)
                yield KeptReply(response.prompt, tuple(response.token_ids), response.text)
            if self.place:
                answered = _Block(replies=[by_prompt[k] for k in range(len(block))])
                write_recorded(self.place, f"{name}.sha256", f"{name}.json", answered.model_dump_json().encode())

    def _read(self, name: str, replies: int) -> _Block | None:
        # One that is broken, or that is not what was written, is asked for again: nothing else is lost by it.
        if not self.place or not self.place.has(f"{name}.json"):
            return None
        if fault_of(self.place, f"{name}.sha256", f"{name}.json"):
            return None
        try:
            block = _Block.model_validate_json(self.place.read(f"{name}.json").to_pybytes())
        except ValidationError:
            return None
        return block if len(block.replies) == replies else None

    def _name(self, block: Sequence[Prompt], sampling: Sampling) -> str:
        asked = [
            (p.messages, p.seed, [i.key for i in p.interventions or ()], (p.sampling or sampling).model_dump())
            for p in block
        ]
        model = self.engine.info
        known_by = (model.fingerprint, model.template, model.dtype, asked)
        return hashlib.sha256(json.dumps(known_by, sort_keys=True).encode()).hexdigest()[:32]
