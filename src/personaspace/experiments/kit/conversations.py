"""Conversations of several turns under several conditions, all going on together; it knows nothing of who the user is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from personaspace.engines import Engine
from personaspace.engines.prompts import Message, Sampling
from personaspace.errors import UsageError
from personaspace.experiments.kit.trials import Ask, Condition, Given, Trials
from personaspace.files import read_json, write_whole
from personaspace.holding.controls import MEASURED_ON
from personaspace.holding.monitor import AlertRule, Monitor, alert_rule
from personaspace.space import PersonaSpace


@dataclass
class Dialogue:
    """A conversation under a condition as far as it has come. name: the conversation's, the same under every condition.
    messages: what it opens with, then what is said. left_out: for each reply, how many of the oldest messages it was given
    without, since the model's context was full."""

    condition: Condition
    name: str
    messages: list[Message] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)

    @property
    def key(self) -> str:
        """It among those of all conditions."""
        return f"{self.condition.name}/{self.name}"


Say = Callable[[int, Sequence[Dialogue]], Mapping[str, str]]
"""From the number of a turn, counted from 1, and the conversations that go on to what their users say, by key; one that is not
among them has ended."""


def converse(trials: Trials[Any], dialogues: Sequence[Dialogue], say: Say, turns: int, sampling: Sampling) -> None:
    """Goes through the turns, all conversations of all conditions at once. One that has grown too long for the model is asked
    without its oldest exchanges. Raises `UsageError` where a message alone is too long, `SpaceError` where a cap waits for an
    alert that the space does not know."""
    on = {d.key: d for d in dialogues}
    rule = alert_rule(trials.space) if any(d.condition.waits for d in dialogues) else None
    for turn in range(1, turns + 1):
        user_messages = say(turn, list(on.values()))
        on = {key: d for key, d in on.items() if key in user_messages}
        asks = {}
        for key, d in on.items():
            d.messages.append({"role": "user", "content": user_messages[key]})
            shown = fitted(trials.engine, d.messages, sampling.max_new_tokens)
            d.left_out.append(len(d.messages) - len(shown))
            asks[key] = Ask(d.condition.during(alerted(trials.space, rule, d.given)), d.name, tuple(shown))
        for k, group in enumerate(together(trials.responses / f"asked-{turn:02d}.json", list(on))):
            # Seeds are the turn's, whichever call asks: conditions differ by what is done to the model alone.
            turn_name = f"turn-{turn:02d}"
            part = turn_name + (f"-{k}" if k else "")
            replies = trials.ask([asks[n] for n in group], sampling, part=part, seeds=turn_name)
            for key, reply in zip(group, replies, strict=True):
                on[key].given.append(reply)
                on[key].messages.append({"role": "assistant", "content": reply.text})


def alerted(space: PersonaSpace, rule: AlertRule | None, given: Sequence[Given]) -> bool:
    """Whether an alert was raised at any of a conversation's turns. It is not taken back: once a reply is held, where it lies
    says nothing of where the model would go by itself."""
    watch = Monitor(space, rule)
    for reply in given:
        if reply.tokens:
            watch.look(space.drift(reply.projection))
        if watch.alert:
            return True
    return False


def said_again(
    trials: Trials[Any],
    transcripts: Mapping[str, Sequence[Message]],
    conditions: Sequence[Condition],
    sampling: Sampling,
) -> list[Dialogue]:
    """What the user says in each transcript, said again to the model under each condition; a system prompt stays."""
    user_turns = {name: [m["content"] for m in talk if m["role"] == "user"] for name, talk in transcripts.items()}
    dialogues = [
        Dialogue(c, name, [m for m in talk[:1] if m["role"] == "system"])
        for c in conditions
        for name, talk in transcripts.items()
    ]

    def say(turn: int, going_on: Sequence[Dialogue]) -> dict[str, str]:
        return {d.key: user_turns[d.name][turn - 1] for d in going_on if turn <= len(user_turns[d.name])}

    converse(trials, dialogues, say, max(map(len, user_turns.values())), sampling)
    return dialogues


def match_displacement(trials: Trials[Any], dialogues: Sequence[Dialogue], turns: int | None = None) -> None:
    """Measures how far a hold moves a token in conversations that it held, for the controls to come: over the first so many
    turns, or over their last half, whichever the effect is of. At an opening alone nothing may have drifted yet, so that
    their steps would be too short."""
    for cap in dict.fromkeys(d.condition.cap for d in dialogues if d.condition.cap and not d.condition.waits):
        held = [d for d in dialogues if d.condition.cap == cap]
        by_turn: dict[int, list[list[Message]]] = {}
        for d in held:
            users = [k for k, m in enumerate(d.messages) if m["role"] == "user"]
            counted = users[len(users) // 2 :] if turns is None else users[:turns]
            for turn, k in enumerate(counted):
                by_turn.setdefault(turn, []).append(fitted(trials.engine, d.messages[: k + 1], MEASURED_ON))
        # As many of each turn, conversations shuffled: every second prompt of four turns would be the odd turns alone.
        rng = np.random.default_rng(0)
        prompts = [of_turn[k] for of_turn in by_turn.values() for k in rng.permutation(len(of_turn))]
        n = min(MEASURED_ON, len(prompts))
        trials.match(cap, [prompts[k * len(prompts) // n] for k in range(n)])


def fitted(engine: Engine, talk: Sequence[Message], room: int) -> list[Message]:
    """The conversation, without its oldest exchanges where it would not leave room for so many tokens; a system prompt stays.
    Raises `UsageError` where the last message alone is too long."""
    limit = (engine.info.context or 10**9) - room
    first = [m for m in talk[:1] if m["role"] == "system"]
    rest = list(talk[len(first) :])
    while (length := len(engine.chat.prompt_ids([*first, *rest]))) > limit:
        if len(rest) < 3:
            raise UsageError(
                f"a message of {length:,} tokens and a reply of {room:,} do not fit {engine.info.id}'s context of "
                f"{engine.info.context:,}"
            )
        rest = rest[2:]
    return [*first, *rest]


def turns_both_ways(unheld: pd.DataFrame, moved: pd.DataFrame) -> pd.DataFrame:
    """The turns that conversations have under both of two conditions, with the drift `unheld` and how much `less` it is under
    the other: one that ended early is not set against turns that it never came to. A reply without a token has no place, and is
    on neither side. rows: with `conversation`, `turn` and `drift`."""
    by_turn = ["conversation", "turn"]
    both = unheld[[*by_turn, "drift"]].merge(moved[[*by_turn, "drift"]], on=by_turn, suffixes=("", "_moved")).dropna()
    return both.assign(unheld=both.drift, less=both.drift - both.drift_moved)


def together(path: Path, keys: Sequence[str]) -> list[list[str]]:
    """The dialogues of a turn in the groups in which they are asked. One that could not go on in an earlier call is asked in a
    group of its own by a later one, so that what was asked before stays as it is."""
    groups = read_json(path, list[list[str]]) or []
    grouped = {key for group in groups for key in group}
    if new := [key for key in keys if key not in grouped]:
        groups.append(new)
        write_whole(path, json.dumps(groups, indent=1, ensure_ascii=False).encode())
    return [[key for key in group if key in set(keys)] for group in groups]
