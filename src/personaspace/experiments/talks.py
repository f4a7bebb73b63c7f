"""Conversations of several turns under several conditions, all going on together; it knows nothing of who the user is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from personaspace.engines import Engine
from personaspace.errors import UsageError
from personaspace.experiments.trials import Ask, Condition, Trials
from personaspace.prompts import Message, Sampling


class Key(NamedTuple):
    """A conversation under a condition, both by name."""

    condition: str
    name: str


Talk = list[Message]
User = Callable[[int, Mapping[Key, Talk]], Mapping[Key, str]]
"""From the number of a turn and the conversations so far to what the user says next; who is not in it has ended."""


def converse(
    trials: Trials[Any],
    openings: Mapping[Key, Talk],
    conditions: Sequence[Condition],
    user: User,
    turns: int,
    sampling: Sampling,
) -> dict[Key, Talk]:
    """Goes through the turns, all conversations of all conditions at once, and returns them whole. A conversation that has
    grown too long for the model is asked without its oldest exchanges. Raises `UsageError` where a message alone is."""
    held = {c.name: c for c in conditions}
    talks = {key: list(talk) for key, talk in openings.items()}
    for turn in range(turns):
        said = user(turn, talks)
        for key, text in said.items():
            talks[key].append({"role": "user", "content": text})
        asks = [
            Ask(
                held[key.condition],
                f"{key.name}/{turn}",
                tuple(fitted(trials.engine, talks[key], sampling.max_new_tokens)),
            )
            for key in said
        ]
        for key, given in zip(said, trials.ask(asks, sampling, part=f"turn-{turn:02d}"), strict=True):
            talks[key].append({"role": "assistant", "content": given.text})
    return talks


def said_again(
    trials: Trials[Any],
    transcripts: Mapping[str, Sequence[Message]],
    conditions: Sequence[Condition],
    sampling: Sampling,
) -> dict[Key, Talk]:
    """What the user says in each transcript, said again to the model under each condition; a system prompt stays."""
    said = {name: [m["content"] for m in talk if m["role"] == "user"] for name, talk in transcripts.items()}
    openings = {
        Key(c.name, name): [m for m in talk[:1] if m["role"] == "system"]
        for c in conditions
        for name, talk in transcripts.items()
    }

    def user(turn: int, talks: Mapping[Key, Talk]) -> dict[Key, str]:
        return {key: said[key.name][turn] for key in talks if turn < len(said[key.name])}

    return converse(trials, openings, conditions, user, max(map(len, said.values())), sampling)


def fitted(engine: Engine, talk: Sequence[Message], room: int) -> list[Message]:
    """The conversation, without its oldest exchanges where it would not leave room for so many tokens; a system prompt stays.
    Raises `UsageError` where the last message alone is too long."""
    limit = (engine.model.context or 10**9) - room
    first = [m for m in talk[:1] if m["role"] == "system"]
    rest = list(talk[len(first) :])
    while len(engine.chat.prompt_ids([*first, *rest])) > limit:
        if len(rest) < 3:
            raise UsageError(
                f"a message of {len(engine.chat.prompt_ids([*first, *rest])):,} tokens and a reply of {room:,} do not fit "
                f"{engine.model.id}'s context of {engine.model.context:,}"
            )
        rest = rest[2:]
    return [*first, *rest]
