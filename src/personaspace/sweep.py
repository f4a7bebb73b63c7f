"""Tries caps: what each takes from role replies against what it costs default ones, and which to take."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from personaspace.calibrate import Reply, Sample, default_range, named_cap, recommended, replayed
from personaspace.catalog import Role
from personaspace.engines import Engine
from personaspace.errors import UsageError
from personaspace.interventions import Intervention
from personaspace.judge import KEPT, Item, Judge
from personaspace.prompts import Prompt, Sampling
from personaspace.space import PersonaSpace

MAX_COST = 1.03
"""The factor on the perplexity of default replies that a recommended cap may have, 0.03 nats a token. It bounds the
upper end of the cost's 95% interval: a bound on the estimate would favour what was measured on few replies."""

MAX_TOUCHED = 0.5
"""The share of the default's own tokens that a recommended cap may change, at any of its layers: one that changes most
of what the default says guards against nothing that it does not say; it is a constant push."""

CERTAIN, DRAWS = 0.95, 4000
"""How sure the interval of a cost is, and over how many draws of questions."""

LONGEST = 64
"""Tokens of a reply in the sweep, at most."""

CHOICES = (("default", 10), ("default", 25), ("default", 50), ("all", 25), ("all", 50), ("all", 65), ("all", 75))

FINALISTS = 4
"""Caps that are tried again on fresh prompts: the best of many looks better than it is."""


@dataclass(frozen=True)
class Losses:
    """What a cap costs each held-out default reply, `[replies]`. lost: by how many nats its tokens together are less
    probable; tokens: how many they are; touched: how many of them it changes; questions: what each replies to."""

    lost: np.ndarray
    tokens: np.ndarray
    touched: np.ndarray
    questions: tuple[str, ...]

    def cost(self) -> float:
        """The factor on the perplexity of all tokens."""
        return math.exp(self.lost.sum() / self.tokens.sum())

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """The cost's interval by a paired bootstrap over questions: both models read the same draws of replies. None
        where all reply to one question."""
        _, question = np.unique(self.questions, return_inverse=True)
        n = int(question.max()) + 1
        if n < 2:
            return None
        lost, tokens = (np.bincount(question, x, n) for x in (self.lost, self.tokens))
        times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS)
        # A percentile interval of few is too narrow: its tails are thinned as a t-interval is wider than a normal one.
        from scipy.stats import norm, t

        tail = norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf((1 + CERTAIN) / 2, n - 1))
        low, high = np.quantile((times @ lost) / (times @ tokens), [tail, 1 - tail])
        return math.exp(low), math.exp(high)

    def __add__(self, other: Losses) -> Losses:
        return Losses(
            np.concatenate([self.lost, other.lost]),
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.touched, other.touched]),
            self.questions + other.questions,
        )


@dataclass(frozen=True)
class Outcome:
    """What a cap does.

    way: how far of the way from plain role replies to default ones its role replies lie, replayed through the model without
    a cap, at the space's layer; way_error: its standard error over prompts. adherence: share of its role replies that the
    judge takes for the role. cost: factor on the perplexity of held-out default replies, with its 95% interval; losses:
    what both are made of. touched: share of their tokens that it changes. capability: share of tasks solved.
    """

    name: str
    way: float
    way_error: float
    adherence: float | None
    cost: float
    touched: float
    capability: float | None = None
    front: bool = False
    cost_interval: tuple[float, float] | None = None
    losses: Losses | None = field(default=None, repr=False, compare=False)

    @property
    def dearest(self) -> float:
        """The upper end of the cost's interval; the cost itself where none is known."""
        return self.cost_interval[1] if self.cost_interval else self.cost

    @property
    def beyond(self) -> float:
        """How much of its bound it takes up, on cost or on tokens touched, whichever is more; out of bounds over 1."""
        return max(math.log(self.dearest) / math.log(MAX_COST), self.touched / MAX_TOUCHED)

    def price(self) -> str:
        """What it costs, in words."""
        inside = f" ({self.cost_interval[0]:.3f} to {self.cost_interval[1]:.3f})" if self.cost_interval else ""
        return f"× {self.cost:.3f}{inside} perplexity, {percent(self.touched)} of the default's tokens touched"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {k: v for k, v in vars(self).items() if k != "losses"}
        return {**values, "cost_interval": list(self.cost_interval) if self.cost_interval else None}


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
) -> tuple[PersonaSpace, list[Outcome]]:
    """Tries every range with every percentile; returns the space with those on the front as caps, the best as `capped`, and
    what each that was tried does, no cap (`none`) first."""
    known = space.meta["caps"]
    caps = dict(named_cap(space, kind, p, layers) for layers in ranges for kind, p in CHOICES)
    space = PersonaSpace({**space.meta, "caps": {**known, **caps}}, space.tensors)
    order = np.random.default_rng(seed).permutation(len(sample.roles))
    asked = [sample.roles[k] for k in order]
    half = len(sample.held_out) // 2
    trial = Trial(engine, space, judge, tasks, seed)
    outcomes = pareto(trial.outcomes(list(caps), asked[:prompts], sample.held_out[:half]))
    finalists = [o for o in ranked(outcomes) if o.name != "none"][:FINALISTS]
    fresh = asked[prompts : 4 * prompts]
    if fresh:
        again = trial.outcomes([o.name for o in finalists], fresh, sample.held_out[half:])[1:]
        best, why = choose(
            [_pooled(o, f, len(asked[:prompts]), len(fresh)) for o, f in zip(finalists, again, strict=True)]
        )
        found = next(f for f in again if f.name == best.name)
        why += f", over both trials of the best {len(finalists)}"
        note = {**_plain(best), "because": why, "again": _plain(found), "again_prompts": len(fresh)}
    else:
        best, why = choose(finalists)
        note = {**_plain(best), "because": f"{why}; no prompts were left to try it again on"}
    worth = {*known, best.name, *(o.name for o in outcomes if o.front)}
    kept = {name: cap for name, cap in space.meta["caps"].items() if name in worth}
    return recommended(PersonaSpace({**space.meta, "caps": kept}, space.tensors), best.name, note), outcomes


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those within both bounds first, the one that goes furthest before the others; then by how far out they are."""
    return sorted(outcomes, key=lambda o: (o.beyond > 1, -o.way if o.beyond <= 1 else o.beyond))


def _pooled(a: Outcome, b: Outcome, n: int, m: int) -> Outcome:
    """Two trials of a cap, on n and on m role prompts, and on as many default replies each, as one."""
    way = (n * a.way + m * b.way) / (n + m)
    error = math.hypot(n * a.way_error, m * b.way_error) / (n + m)
    adherence = a.adherence
    if a.adherence is not None and b.adherence is not None:
        adherence = (n * a.adherence + m * b.adherence) / (n + m)
    pooled = replace(a, way=way, way_error=error, adherence=adherence)
    return _priced(pooled, a.losses + b.losses) if a.losses and b.losses else pooled


@dataclass(frozen=True)
class Trial:
    """Tries caps of a space on given prompts."""

    engine: Engine
    space: PersonaSpace
    judge: Judge | None
    tasks: Sequence[Task]
    seed: int

    def outcomes(self, caps: Sequence[str], asked: Sequence[Reply], held_out: Sequence[Reply]) -> list[Outcome]:
        """What each cap does to replies to `asked` and costs on `held_out`, no cap (`none`) first."""
        names = ["none", *caps]
        on, adherence = self._role_replies(names, asked)
        default = float(np.mean(self._projections(held_out)))
        plain = self._probabilities("none", held_out)[0]
        solved = self._capability(names) if self.tasks else {}
        gap = default - float(np.nanmean(on["none"]))
        outcomes = []
        for name in names:
            moved = (on[name] - on["none"])[~np.isnan(on[name] - on["none"])] / gap
            error = float(moved.std(ddof=1) / math.sqrt(len(moved))) if len(moved) > 1 else math.nan
            found, tokens, touched = self._probabilities(name, held_out)
            losses = Losses(plain - found, tokens, touched, tuple(str(r.messages[-1]["content"]) for r in held_out))
            share = adherence.get(name)
            outcome = Outcome(name, float(moved.mean()), error, share, 1.0, 0.0, solved.get(name))
            outcomes.append(_priced(outcome, losses, self.seed))
        return outcomes

    def _held_by(self, name: str) -> tuple[Intervention, ...]:
        return () if name == "none" else (self.space.cap(name),)

    def _role_replies(
        self, names: Sequence[str], asked: Sequence[Reply]
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """For each cap, the projections of its role replies, uncapped, and the share that the judge takes for the role."""
        given = Sampling(**self.space.meta["sampling"])
        sampling = given.model_copy(update={"max_new_tokens": min(given.max_new_tokens, LONGEST)})
        prompts = [
            Prompt(r.messages, r.role, index=k, question=c, seed=self.seed + k, interventions=self._held_by(name))
            for c, name in enumerate(names)
            for k, r in enumerate(asked)
        ]
        found = sorted(self.engine.respond(prompts, sampling), key=lambda r: (r.prompt.question, r.prompt.index))
        replies = [Reply(r.prompt.role, r.prompt.messages, r.token_ids, r.text) for r in found]
        on = np.array(self._projections(replies)).reshape(len(names), len(asked))
        by_cap = dict(zip(names, on, strict=True))
        if self.judge is None:
            return by_cap, {}
        descriptions = self.space.meta.get("descriptions", {})
        items = [
            Item(_role(r.role, descriptions.get(r.role, "")), str(r.messages[-1]["content"]), r.text) for r in replies
        ]
        kept = np.array([s.score == KEPT for s in self.judge.score(items)]).reshape(on.shape)
        return by_cap, {name: float(k.mean()) for name, k in zip(names, kept, strict=True)}

    def _projections(self, replies: Sequence[Reply]) -> list[float]:
        """Each reply's projection at the space's layer, without a cap; NaN for an empty one."""
        unit = self.space.axis_at()
        turns = replayed(self.engine, replies, read=[self.space.layer])
        return [float(t.activation[0] @ unit) if t.tokens else math.nan for t in turns]

    def _probabilities(self, name: str, replies: Sequence[Reply]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each reply under a cap: the log-probability of its tokens together, how many they are, and how many of
        them the cap changes; `[replies]` each."""
        turns = list(replayed(self.engine, replies, read=[], interventions=self._held_by(name), logprobs=True))
        each = [((t.logprob or 0) * t.tokens, t.tokens, t.touched) for t in turns]
        together, tokens, touched = np.array(each, dtype=float).T
        return together, tokens, touched

    def _capability(self, names: Sequence[str]) -> dict[str, float]:
        """For each cap, the share of tasks whose greedy reply holds the answer."""
        prompts = [
            Prompt(({"role": "user", "content": t.prompt},), question=c, index=k, interventions=self._held_by(name))
            for c, name in enumerate(names)
            for k, t in enumerate(self.tasks)
        ]
        right = np.zeros((len(names), len(self.tasks)))
        for r in self.engine.respond(prompts, Sampling(temperature=0, max_new_tokens=LONGEST)):
            right[r.prompt.question, r.prompt.index] = bool(re.search(self.tasks[r.prompt.index].answer, r.text))
        return {name: float(right[c].mean()) for c, name in enumerate(names)}


def _role(name: str, description: str) -> Role:
    return Role(role=name, description=description, instructions=("-",))


def pareto(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Marks those that no other beats in both, the way and the cost."""
    return [
        replace(
            o,
            front=not any(
                (p.way >= o.way and p.cost < o.cost) or (p.way > o.way and p.cost <= o.cost) for p in outcomes
            ),
        )
        for o in outcomes
    ]


def choose(outcomes: Sequence[Outcome]) -> tuple[Outcome, str]:
    """The cap to take, and why: of those within the bounds on cost and on tokens touched the one that goes furthest,
    else the gentlest."""
    best = ranked([o for o in outcomes if o.name != "none"])[0]
    bounds = (
        f"at most {100 * (MAX_COST - 1):.0f}% perplexity at the upper end of its 95% interval and at most "
        f"{percent(MAX_TOUCHED)} of the default's own tokens touched"
    )
    if best.beyond <= 1:
        return best, f"of the caps within bounds ({bounds}) it goes furthest: {best.price()}"
    return best, f"no cap is within bounds ({bounds}); this one is the gentlest: {best.price()}"


def _priced(o: Outcome, losses: Losses, seed: int = 0) -> Outcome:
    """The outcome with what the losses say of its cost."""
    touched = float(losses.touched.sum() / losses.tokens.sum())
    return replace(o, cost=losses.cost(), touched=touched, cost_interval=losses.interval(seed), losses=losses)


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.0f}%"


def _plain(o: Outcome) -> dict[str, Any]:
    return {k: v for k, v in o.to_dict().items() if k != "name"}
