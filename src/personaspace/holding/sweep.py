"""Tries caps: what each takes from role replies against what it costs default ones, and which to take."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personaspace.catalog import Role
from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.errors import UsageError
from personaspace.holding.calibrate import Reply, Sample, default_range, named_cap, recommended, replayed
from personaspace.holding.controls import directions, displaced, displacement
from personaspace.holding.outcomes import Losses, Outcome, choose, effects, pareto, pooled, priced, ranked
from personaspace.holding.tradeoff import compared
from personaspace.judges import KEPT, Item, Judge
from personaspace.model.interventions import Intervention
from personaspace.space import PersonaSpace

CONTROLS = 3
"""Random directions that the cap which is taken is compared with unless more are asked for."""

Held = Mapping[str, tuple[Intervention, ...]]
"""By name, what is done to the model; nothing is `none`."""

RoleReplies = tuple[Tensor, float | None]
"""Replies' mean activations `[replies, hidden]`, and the share of them in role where it was judged."""

LONGEST = 64
"""Tokens of a reply in the sweep, at most."""

CHOICES = (("default", 10), ("default", 25), ("default", 50), ("all", 25), ("all", 50), ("all", 65), ("all", 75))

FINALISTS = 4
"""Caps that are tried again on fresh prompts: the best of many looks better than it is."""


@dataclass(frozen=True)
class Task:
    """A capability task: what is asked, and a regular expression that a right reply holds."""

    prompt: str
    answer: str


def read_tasks(path: str | Path) -> list[Task]:
    """Tasks from JSONL, `{"prompt", "answer"}` a line. Raises `UsageError` with file and line."""
    tasks = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--capability {path}: cannot be read: {e}") from None
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            re.compile(values["answer"])
            tasks.append(Task(str(values["prompt"]), values["answer"]))
        except (ValueError, KeyError, TypeError, re.error) as e:
            raise UsageError(
                f'{path}, line {number}: expected {{"prompt", "answer"}}, an answer to search for: {e}'
            ) from None
    return tasks


def candidates(layers: int) -> list[range]:
    """Ranges to try: the study's late one, wider and narrower, earlier and later ones."""
    shares = ((0.4, 0.9), (0.5, 0.77), (0.5, 0.9), (0.7, 0.97))
    return [
        default_range(layers),
        *(range(round(a * layers), max(round(a * layers) + 1, round(b * layers))) for a, b in shares),
    ]


def sweep(
    engine: Engine,
    space: PersonaSpace,
    sample: Sample,
    ranges: Sequence[range],
    *,
    judge: Judge | None,
    prompts: int = 24,
    tasks: Sequence[Task] = (),
    seed: int = 0,
    random: int = CONTROLS,
) -> tuple[PersonaSpace, list[Outcome]]:
    """Tries every range with every percentile; returns the space with those on the front as caps, the best as
    `capped`, and what each that was tried does, no cap (`none`) first. random: along how many random directions the
    model is displaced as far as by the cap that is taken, which is noted beside it."""
    known = space.meta["caps"]
    caps = dict(named_cap(space, kind, p, layers) for layers in ranges for kind, p in CHOICES)
    space = PersonaSpace({**space.meta, "caps": {**known, **caps}}, space.tensors)
    order = np.random.default_rng(seed).permutation(len(sample.roles))
    shuffled = [sample.roles[k] for k in order]
    asked, fresh = shuffled[:prompts], shuffled[prompts : 4 * prompts]
    half = len(sample.held_out) // 2
    trial = Trial(engine, space, judge, tasks, seed)
    held = {"none": (), **{name: (space.cap(name),) for name in caps}}
    replies = trial.role_replies(held, asked)
    outcomes = pareto(trial.outcomes(held, replies, asked, sample.held_out[:half]))
    finalists = [o for o in ranked(outcomes) if o.name != "none"][:FINALISTS]
    if fresh:
        asked, held_out = fresh, sample.held_out[half:]
        held = {name: held[name] for name in ("none", *(o.name for o in finalists))}
        replies = trial.role_replies(held, asked)
        again = trial.outcomes(held, replies, asked, held_out)[1:]
        best, why = choose([pooled(o, f, prompts, len(fresh)) for o, f in zip(finalists, again, strict=True)])
        found = next(f for f in again if f.name == best.name)
        why += f", over both trials of the best {len(finalists)}"
        note = {"because": why, "again": _plain(found), "again_prompts": len(fresh)}
    else:
        held_out = sample.held_out[:half]
        best, why = choose(finalists)
        note = {"because": f"{why}; no prompts were left to try it again on"}
    clamp = space.cap(best.name)
    steps = displacement(engine, space, clamp, [r.messages for r in asked])
    others = {name: displaced(space, clamp.layers, steps, along) for name, along in directions(space, random).items()}
    replies = {name: replies[name] for name in ("none", best.name)} | trial.role_replies(others, asked)
    moved = effects(space, [r.role for r in asked], replies, trial.place(held_out))
    beside = {
        "prompts": len(asked),
        "layers": list(clamp.layers),
        "displacement": steps,
        "effects": [vars(moved[name]) for name in (best.name, *others)],
    }
    note = {**_plain(best), **note, "controls": {**beside, "because": compared(beside)}}
    worth = {*known, best.name, *(o.name for o in outcomes if o.front)}
    kept = {name: cap for name, cap in space.meta["caps"].items() if name in worth}
    return recommended(PersonaSpace({**space.meta, "caps": kept}, space.tensors), best.name, note), outcomes


def _plain(o: Outcome) -> dict[str, Any]:
    return {k: v for k, v in o.to_dict().items() if k != "name"}


@dataclass(frozen=True)
class Trial:
    """Tries caps, and what they are compared with, on given prompts."""

    engine: Engine
    space: PersonaSpace
    judge: Judge | None
    tasks: Sequence[Task]
    seed: int

    def outcomes(
        self, held: Held, replies: Mapping[str, RoleReplies], asked: Sequence[Reply], held_out: Sequence[Reply]
    ) -> list[Outcome]:
        """What each cap does to role replies, which were given to `asked`, and costs on `held_out`; no cap is
        `none`."""
        found = effects(self.space, [r.role for r in asked], replies, self.place(held_out))
        plain = self._probabilities((), held_out)[0]
        questions = tuple(str(r.messages[-1]["content"]) for r in held_out)
        solved = self._capability(held) if self.tasks else {}
        outcomes = []
        for name, interventions in held.items():
            together, tokens, touched = self._probabilities(interventions, held_out)
            unpriced = Outcome(**vars(found[name]), cost=1.0, touched=0.0, capability=solved.get(name))
            outcomes.append(priced(unpriced, Losses(plain - together, tokens, touched, questions), self.seed))
        return outcomes

    def role_replies(self, held: Held, asked: Sequence[Reply]) -> dict[str, RoleReplies]:
        """By name, replies' mean activations at the space's layer `[prompts, hidden]`, read by the model as it is,
        NaN for an empty one, and the share that the judge takes for the role. The same prompt has the same seed
        under every name."""
        given = Sampling(**self.space.meta["sampling"])
        sampling = given.model_copy(update={"max_new_tokens": min(given.max_new_tokens, LONGEST)})
        prompts = [
            Prompt(r.messages, r.role, index=k, question=c, seed=self.seed + k, interventions=interventions)
            for c, interventions in enumerate(held.values())
            for k, r in enumerate(asked)
        ]
        found = sorted(self.engine.respond(prompts, sampling), key=lambda r: (r.prompt.question, r.prompt.index))
        replies = [Reply(r.prompt.role, r.prompt.messages, r.token_ids, r.text) for r in found]
        shape = (len(held), len(asked))
        activations = self._activations(replies).view(*shape, -1)
        if self.judge is None:
            return {name: (activations[c], None) for c, name in enumerate(held)}
        descriptions = self.space.meta.get("descriptions", {})
        items = [
            Item(_role(r.role, descriptions.get(r.role, "")), str(r.messages[-1]["content"]), r.text) for r in replies
        ]
        in_role = np.array([s.score == KEPT for s in self.judge.score(items)]).reshape(shape).mean(1)
        return {name: (activations[c], float(in_role[c])) for c, name in enumerate(held)}

    def place(self, replies: Sequence[Reply]) -> float:
        """The mean projection of replies at the space's layer, as the model is."""
        return float(np.nanmean((self._activations(replies) @ self.space.axis_at()).numpy()))

    def _activations(self, replies: Sequence[Reply]) -> Tensor:
        """Each reply's mean activation at the space's layer `[replies, hidden]`, as the model is; NaN for an empty
        one."""
        turns = replayed(self.engine, replies, read=[self.space.layer])
        return torch.stack(
            [
                t.activation[0].float().cpu() if t.tokens else torch.full_like(self.space.axis_at(), math.nan)
                for t in turns
            ]
        )

    def _probabilities(
        self, interventions: Sequence[Intervention], replies: Sequence[Reply]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each reply under interventions: the log-probability of its tokens together, how many they are, and how
        many of them are changed; `[replies]` each."""
        turns = replayed(self.engine, replies, read=[], interventions=interventions, logprobs=True)
        each = [((t.logprob or 0) * t.tokens, t.tokens, t.touched) for t in turns]
        together, tokens, touched = np.array(each, dtype=float).T
        return together, tokens, touched

    def _capability(self, held: Held) -> dict[str, float]:
        """For each cap, the share of tasks whose greedy reply holds the answer."""
        prompts = [
            Prompt(({"role": "user", "content": t.prompt},), question=c, index=k, interventions=interventions)
            for c, interventions in enumerate(held.values())
            for k, t in enumerate(self.tasks)
        ]
        right = np.zeros((len(held), len(self.tasks)))
        for r in self.engine.respond(prompts, Sampling(temperature=0, max_new_tokens=LONGEST)):
            right[r.prompt.question, r.prompt.index] = bool(re.search(self.tasks[r.prompt.index].answer, r.text))
        return {name: float(right[c].mean()) for c, name in enumerate(held)}


def _role(name: str, description: str) -> Role:
    return Role(role=name, description=description, instructions=("-",))
