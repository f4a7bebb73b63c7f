"""Tries caps: what each takes from role replies against what it costs default ones, and which to take."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personaspace import json_text
from personaspace.catalog import Role
from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.errors import UsageError
from personaspace.holding.calibrate import ReplySample, RunReply, default_range, named_cap, recommended, replayed
from personaspace.holding.controls import directions, displaced, displacement
from personaspace.holding.kept import KeptReplies
from personaspace.holding.outcomes import CapOutcome, Losses, choose, effects, pareto, pooled, priced, ranked
from personaspace.holding.tradeoff import compared
from personaspace.judges import KEPT, Item, Judge, score_all
from personaspace.model.interventions import Intervention
from personaspace.space import PersonaSpace
from personaspace.watcher import Overall, Watcher

CONTROLS = 3
"""Random directions that the cap which is taken is compared with unless more are asked for."""

InterventionsByName = Mapping[str, tuple[Intervention, ...]]
"""By name, what is done to the model; nothing is `none`."""

RoleReplies = tuple[Tensor, float | None]
"""Replies' mean activations `[replies, hidden]`, and the share of them in role where it was judged."""

LONGEST = 64
"""Tokens of a reply in the sweep, at most."""

CHOICES = (("default", 10), ("default", 25), ("default", 50), ("all", 25), ("all", 50), ("all", 65), ("all", 75))

FINALISTS = 4
"""Caps that are tried again on fresh prompts: the best of many looks better than it is."""


@dataclass(frozen=True)
class CapabilityTask:
    """A capability task: what is asked, and a regular expression that a right reply holds."""

    prompt: str
    answer: str


def read_tasks(path: str | Path) -> list[CapabilityTask]:
    """Tasks from JSONL, `{"prompt", "answer"}` a line. Raises `UsageError` with file and line.

    >>> read_tasks("tasks.jsonl")[0]
    CapabilityTask(prompt='What is the capital of France?', answer='Paris')
    """
    tasks = []
    try:
        lines = list(json_text.lines(Path(path).read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"capability={path}: cannot be read: {e}") from None
    for number, line in lines:
        try:
            values = json_text.parse(line)
            re.compile(values["answer"])
            tasks.append(CapabilityTask(str(values["prompt"]), values["answer"]))
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
    sample: ReplySample,
    ranges: Sequence[range],
    *,
    judge: Judge | None,
    prompts: int = 24,
    tasks: Sequence[CapabilityTask] = (),
    seed: int = 0,
    random: int = CONTROLS,
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> tuple[PersonaSpace, list[CapOutcome]]:
    """Tries every range with every percentile; returns the space with those on the front as caps, the best as
    `capped`, and what each that was tried does, no cap (`none`) first. random: along how many random directions the
    model is displaced as far as by the cap that is taken, which is noted beside it. folder: where replies are kept while it
    lasts, so that one that was stopped goes on; whoever has written what it found takes them away (`kept.forget`). Raises
    `UsageError` where nothing is asked, or compared, `RunError` where replies can't be kept."""
    if prompts < 1:
        raise UsageError(f"prompts={prompts}: expected 1 or more")
    if random < 1:
        raise UsageError(f"controls={random}: expected 1 or more, 20 to tell whether an effect is the axis' own")
    # 1) Every cap on the same prompts, and on the same half of the held-out replies.
    existing_caps = space.caps
    tried_caps = dict(named_cap(space, kind, p, layers) for layers in ranges for kind, p in CHOICES)
    space = PersonaSpace({**space.meta, "caps": {**existing_caps, **tried_caps}}, space.tensors)
    order = np.random.default_rng(seed).permutation(len(sample.roles))
    shuffled = [sample.roles[k] for k in order]
    source_replies, fresh_replies = shuffled[:prompts], shuffled[prompts : 4 * prompts]
    half = len(sample.held_out) // 2
    control_directions = directions(space, random)
    retried_count = 1 + min(FINALISTS, len(tried_caps)) if fresh_replies else 0
    total = (1 + len(tried_caps)) * len(source_replies) + (retried_count + len(control_directions)) * len(
        fresh_replies or source_replies
    )
    answers = KeptReplies(engine, folder)
    trial = Trial(engine, answers, space, judge, tasks, seed, Overall(watcher or Watcher(), total))
    interventions = {"none": (), **{name: (space.cap(name),) for name in tried_caps}}
    replies = trial.role_replies(interventions, source_replies)
    outcomes = pareto(trial.outcomes(interventions, replies, source_replies, sample.held_out[:half]))
    # 2) The best of many looks better than it is: a few are tried again on prompts and replies that they were not ranked by.
    finalists = [o for o in ranked(outcomes) if o.name != "none"][:FINALISTS]
    if fresh_replies:
        source_replies, held_out = fresh_replies, sample.held_out[half:]
        interventions = {name: interventions[name] for name in ("none", *(o.name for o in finalists))}
        replies = trial.role_replies(interventions, source_replies)
        retrials = trial.outcomes(interventions, replies, source_replies, held_out)[1:]
        best, why = choose(
            [pooled(o, f, prompts, len(fresh_replies)) for o, f in zip(finalists, retrials, strict=True)]
        )
        retried = next(f for f in retrials if f.name == best.name)
        why += f", over both trials of the best {len(finalists)}"
        summary = {"because": why, "again": _plain(retried), "again_prompts": len(fresh_replies)}
    else:
        held_out = sample.held_out[:half]
        best, why = choose(finalists)
        summary = {"because": f"{why}; no prompts were left to try it again on"}
    # 3) Beside the cap that is taken, what displaces as far along other directions, on the prompts that it was tried on last.
    cap = space.cap(best.name)
    steps = displacement(engine, space, cap, [r.messages for r in source_replies])
    control_interventions = {
        name: displaced(space, cap.layers, steps, along) for name, along in control_directions.items()
    }
    replies = {name: replies[name] for name in ("none", best.name)} | trial.role_replies(
        control_interventions, source_replies
    )
    effects_by_name = effects(space, [r.role for r in source_replies], replies, trial.place(held_out))
    controls = {
        "prompts": len(source_replies),
        "layers": list(cap.layers),
        "displacement": steps,
        "effects": [vars(effects_by_name[name]) for name in (best.name, *control_interventions)],
    }
    summary = {**_plain(best), **summary, "controls": {**controls, "because": compared(controls)}}
    kept_names = {*existing_caps, best.name, *(o.name for o in outcomes if o.front)}
    kept_caps = {name: cap for name, cap in space.caps.items() if name in kept_names}
    return recommended(PersonaSpace({**space.meta, "caps": kept_caps}, space.tensors), best.name, summary), outcomes


def _plain(o: CapOutcome) -> dict[str, Any]:
    return {k: v for k, v in o.to_dict().items() if k != "name"}


@dataclass(frozen=True)
class Trial:
    """Tries caps, and what they are compared with, on the prompts of a run's role replies (`source_replies`)."""

    engine: Engine
    answers: KeptReplies
    space: PersonaSpace
    judge: Judge | None
    tasks: Sequence[CapabilityTask]
    seed: int
    watcher: Watcher

    def outcomes(
        self,
        interventions: InterventionsByName,
        replies: Mapping[str, RoleReplies],
        source_replies: Sequence[RunReply],
        held_out: Sequence[RunReply],
    ) -> list[CapOutcome]:
        """What each cap does to role replies, which were given to the prompts of `source_replies`, and costs on
        `held_out`; no cap is `none`."""
        effects_by_name = effects(self.space, [r.role for r in source_replies], replies, self.place(held_out))
        plain_logprobs = self._probabilities((), held_out)[0]
        questions = tuple(str(r.messages[-1]["content"]) for r in held_out)
        # For each cap, the share of tasks whose greedy reply holds the answer.
        solved: dict[str, float] = {}
        if self.tasks:
            task_prompts = [
                Prompt(({"role": "user", "content": t.prompt},), question=c, index=k, interventions=cap_interventions)
                for c, cap_interventions in enumerate(interventions.values())
                for k, t in enumerate(self.tasks)
            ]
            right = np.zeros((len(interventions), len(self.tasks)))
            for r in self.answers.respond(task_prompts, Sampling(temperature=0, max_new_tokens=LONGEST)):
                right[r.prompt.question, r.prompt.index] = bool(re.search(self.tasks[r.prompt.index].answer, r.text))
            solved = {name: float(right[c].mean()) for c, name in enumerate(interventions)}
        outcomes = []
        for name, cap_interventions in interventions.items():
            capped_logprobs, tokens, touched = self._probabilities(cap_interventions, held_out)
            unpriced = CapOutcome(**vars(effects_by_name[name]), cost=1.0, touched=0.0, capability=solved.get(name))
            outcomes.append(
                priced(unpriced, Losses(plain_logprobs - capped_logprobs, tokens, touched, questions), self.seed)
            )
        return outcomes

    def role_replies(
        self, interventions: InterventionsByName, source_replies: Sequence[RunReply]
    ) -> dict[str, RoleReplies]:
        """By name, replies' mean activations at the space's layer `[prompts, hidden]`, read by the model as it is,
        NaN for an empty one, and the share that the judge takes for the role. The same prompt has the same seed
        under every name."""
        run_sampling = Sampling(**self.space.meta["sampling"])
        sampling = run_sampling.model_copy(update={"max_new_tokens": min(run_sampling.max_new_tokens, LONGEST)})
        # All interventions in one call: an engine answers them side by side, each prompt with its own.
        prompts = [
            Prompt(r.messages, r.role, index=k, question=c, seed=self.seed + k, interventions=cap_interventions)
            for c, cap_interventions in enumerate(interventions.values())
            for k, r in enumerate(source_replies)
        ]
        responses = []
        for response in self.answers.respond(prompts, sampling):
            responses.append(response)
            self.watcher.progress(len(responses), len(prompts))
        responses.sort(key=lambda r: (r.prompt.question, r.prompt.index))
        replies = [RunReply(r.prompt.role, r.prompt.messages, r.token_ids, r.text) for r in responses]
        shape = (len(interventions), len(source_replies))
        activations = self._activations(replies).view(*shape, -1)
        if self.judge is None:
            return {name: (activations[c], None) for c, name in enumerate(interventions)}
        descriptions = self.space.meta.get("descriptions", {})
        items = [
            Item(
                # A judge reads a role's name and description alone, but a role has an instruction at least.
                Role(role=r.role, description=descriptions.get(r.role, ""), instructions=("-",)),
                str(r.messages[-1]["content"]),
                r.text,
            )
            for r in replies
        ]
        counts = np.full(len(items), np.nan)
        for place, score in score_all(self.judge, items):
            if score.score is not None:
                counts[place] = score.score == KEPT
        # What could not be scored is missing, not out of role.
        rates = [None if np.isnan(row).all() else float(np.nanmean(row)) for row in counts.reshape(shape)]
        return {name: (activations[c], rates[c]) for c, name in enumerate(interventions)}

    def place(self, replies: Sequence[RunReply]) -> float:
        """The mean projection of replies at the space's layer, as the model is."""
        return float(np.nanmean((self._activations(replies) @ self.space.axis_at()).numpy()))

    def _activations(self, replies: Sequence[RunReply]) -> Tensor:
        """Each reply's mean activation at the space's layer `[replies, hidden]`, as the model is; NaN for an empty
        one."""
        turns = replayed(self.engine, replies, self.space.span, read=[self.space.layer])
        return torch.stack(
            [
                t.activation[0].float().cpu() if t.tokens else torch.full_like(self.space.axis_at(), math.nan)
                for t in turns
            ]
        )

    def _probabilities(
        self, interventions: Sequence[Intervention], replies: Sequence[RunReply]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each reply under interventions: the log-probability of its tokens together, how many they are, and how
        many of them are changed; `[replies]` each."""
        turns = replayed(self.engine, replies, read=[], interventions=interventions, logprobs=True)
        rows = [((t.logprob or 0) * t.tokens, t.tokens, t.touched) for t in turns]
        logprobs, tokens, touched = np.array(rows, dtype=float).T
        return logprobs, tokens, touched
