"""What each way of holding does over conversations, and what it costs: drift, perplexity, repetition, tasks.

Not in the study, which caps always.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from personaspace.catalog import Catalog
from personaspace.engines.prompts import Message, Sampling
from personaspace.errors import UsageError
from personaspace.experiments import data
from personaspace.experiments.holds.findings import DEFAULT_TALK, ROLE_TALK, findings
from personaspace.experiments.holds.page import page
from personaspace.experiments.kit import tasks as solving
from personaspace.experiments.kit.conversations import Dialogue, match_displacement, said_again
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Names, Options, option
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.trials import PLAIN, Condition, Trials, beside_axis, capped
from personaspace.space import PersonaSpace

PROMPT_TOKENS = 24
"""About what a user's message takes, the template's own tokens included."""


class HoldsOptions(Options):
    """See the fields."""

    holds: Names = option(
        ("capped", "capped+alert", "capped+target", "capped+mirror", "capped+answer", "capped+half-life=16"),
        "Ways of holding: a cap, and behind it +target, +mirror, +generated, +answer, +half-life=TOKENS, +alert.",
    )
    conversations: int = option(6, "Conversations with a role, and as many with the default.", ge=3)
    turns: int = option(8, "Turns of each.", ge=2)
    items: int = option(10, "Tasks a kind: instructions (48 at most), facts (40), sums.", ge=1, le=200)
    controlled: Names = option(("capped",), "Which of them random directions are set beside.", later=True)
    controls: int = option(20, "Random directions, along which the model is displaced as far.", ge=0, later=True)
    control_turns: int = option(4, "Turns of the roles' conversations that are held along them.", ge=1, later=True)
    max_new_tokens: int = option(24, "At most that many tokens a reply.", ge=1)


PUBLISHED = HoldsOptions(conversations=40, turns=16, items=48, control_turns=8, max_new_tokens=256)


def conditions(options: HoldsOptions) -> list[Condition]:
    """Never, then each way of holding."""
    return [PLAIN, *capped(options.holds)]


def control_conditions(options: HoldsOptions) -> list[Condition]:
    """Random directions and a shuffled axis beside those that are to have them."""
    chosen = capped([name for name in options.controlled if name in options.holds])
    return beside_axis(chosen, options.controls)


def cost(options: HoldsOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine; what was said before is gone through again at each turn, and at the end."""
    exchange = options.max_new_tokens + PROMPT_TOKENS
    arms = [(2 * options.conversations * len(conditions(options)), options.turns)]
    arms += [(options.conversations * len(control_conditions(options)), min(options.control_turns, options.turns))]
    n_tasks = len(solving.tasks(options.items, options.seed)) * len(conditions(options))
    replies = sum(n * turns for n, turns in arms)
    read = sum(n * exchange * (turns * (turns + 1) // 2 + turns) for n, turns in arms)
    answers = (replies + n_tasks) * options.max_new_tokens
    return Cost(replies + n_tasks, read + n_tasks * solving.PROMPT_TOKENS + answers, answers, options.turns)


def talks(options: HoldsOptions, catalog: Catalog) -> dict[str, list[Message]]:
    """What users say, by the conversation's name, `role/…` or `default/…`: questions of the catalogue to a role, behind its
    instruction; ordinary talk to the default. Raises `UsageError` where there are too few roles."""
    roles = [r for r in catalog.roles if not r.ai]
    if options.conversations > len(roles):
        raise UsageError(
            f"--conversations {options.conversations}: the catalogue {catalog.name} has {len(roles)} roles"
        )
    questions = [q.question for q in catalog.questions]
    ordinary = [line["text"] for line in data.lines("ordinary.jsonl")]
    said: dict[str, list[Message]] = {}
    for k in range(options.conversations):
        role = roles[k * len(roles) // options.conversations]
        asked = [questions[(k * options.turns + turn) % len(questions)] for turn in range(options.turns)]
        # Eleven is no divisor of 32: neighbours do not begin alike.
        small_talk = [ordinary[(11 * k + turn) % len(ordinary)] for turn in range(options.turns)]
        system: Message = {"role": "system", "content": role.instructions[k % len(role.instructions)]}
        said[f"{ROLE_TALK}/{role.role}"] = [system, *({"role": "user", "content": q} for q in asked)]
        said[f"{DEFAULT_TALK}/{k + 1}"] = [{"role": "user", "content": text} for text in small_talk]
    return said


def run(trials: Trials[HoldsOptions]) -> Result:
    """Talks under each way of holding and along random directions, reads what was said by the plain model, puts the tasks.
    Raises `PersonaSpaceError`."""
    options, space = trials.options, trials.space
    space.drift(0.0)  # says it now where the space does not know the default's deviation
    sampling, said = Sampling(max_new_tokens=options.max_new_tokens), talks(options, trials.catalog)
    dialogues = said_again(trials, said, conditions(options), sampling)
    rows = _rows(trials, dialogues, space)
    with_roles = {name: _first_turns(talk, options.control_turns) for name, talk in said.items() if ROLE_TALK in name}
    control_rows = []
    if beside := control_conditions(options):
        chosen = [d for d in dialogues if d.condition.name in options.controlled and ROLE_TALK in d.name]
        match_displacement(trials, chosen, options.control_turns)
        control_rows = _rows(trials, said_again(trials, with_roles, beside, sampling), space)
    solved, task_rows = solving.solve(trials, conditions(options), options.items)
    result = findings(options.holds, rows, control_rows, solved)
    blank = dict.fromkeys(rows[0])
    tasks = [{**blank, **{k: r[k] for k in ("condition", "text", "tokens", "projection")}} for r in task_rows]
    for row, task in zip(tasks, task_rows, strict=True):
        row |= {"kind": "task", "conversation": task["item"], "solved": task["value"]}
    return page(space, options.turns, result, [*rows, *control_rows, *tasks], solved)


def _first_turns(talk: Sequence[Message], turns: int) -> list[Message]:
    """What the user says in the first of them, behind the system prompt."""
    system = [m for m in talk if m["role"] == "system"]
    return [*system, *[m for m in talk if m["role"] == "user"][:turns]]


def _rows(trials: Trials[HoldsOptions], dialogues: Sequence[Dialogue], space: PersonaSpace) -> list[dict[str, Any]]:
    """A row a reply: where the plain model reads it, and how probable it finds it."""
    rows = []
    for condition in dict.fromkeys(d.condition for d in dialogues):
        of_condition = [d for d in dialogues if d.condition == condition]
        part = f"read-{condition.name}"
        read = trials.read({d.name: d.messages for d in of_condition}, part=part, logprobs=True)
        for d in of_condition:
            replies = [m["content"] for m in d.messages if m["role"] == "assistant"]
            for turn, (text, given, r) in enumerate(zip(replies, d.given, read[d.name], strict=True)):
                rows.append(
                    {
                        "condition": condition.name,
                        "control": condition.control,
                        "conversation": d.name,
                        "kind": d.name.split("/")[0],
                        "turn": turn + 1,
                        "text": text,
                        "tokens": r.tokens,
                        "touched": given.touched,
                        "projection": r.projection,
                        "drift": space.drift(r.projection) if r.tokens else math.nan,
                        "logprob": r.logprob,
                    }
                )
    return rows


EXPERIMENT = Experiment("holds", PUBLISHED, cost, run)
