"""Tries caps: what each takes from role replies against what it costs default ones, and which to take."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from personaspace.report.figures import FAR, NEAR, SOFT, Block, write_figures
from personaspace.space import PersonaSpace

MAX_COST = 1.03
"""The factor on the perplexity of default replies that a recommended cap may have."""

LONGEST = 64
"""Tokens of a reply in the sweep, at most."""

CHOICES = (("default", 25), ("default", 50), ("all", 25), ("all", 50), ("all", 65), ("all", 75))

FINALISTS = 4
"""Caps that are tried again on fresh prompts: the best of many looks better than it is."""


@dataclass(frozen=True)
class Outcome:
    """What a cap does.

    way: how far of the way from plain role replies to default ones its role replies lie, replayed through the model without
    a cap, at the space's layer; way_error: its standard error over prompts. adherence: share of its role replies that the
    judge takes for the role. cost: factor on the perplexity of held-out default replies. touched: share of their tokens that
    it changes. capability: share of tasks solved.
    """

    name: str
    way: float
    way_error: float
    adherence: float | None
    cost: float
    touched: float
    capability: float | None = None
    front: bool = False


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


def ranked(outcomes: Sequence[Outcome], most: float = MAX_COST) -> list[Outcome]:
    """Those within the cost first, the one that goes furthest before the others; then by cost."""
    return sorted(outcomes, key=lambda o: (o.cost > most, -o.way if o.cost <= most else o.cost))


def _pooled(a: Outcome, b: Outcome, n: int, m: int) -> Outcome:
    """Two trials of a cap, on n and on m role prompts, and on as many default replies each, as one."""
    way = (n * a.way + m * b.way) / (n + m)
    return replace(a, way=way, cost=math.sqrt(a.cost * b.cost), touched=(a.touched + b.touched) / 2)


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
        costs = {name: self._cost(name, held_out) for name in names}
        solved = self._capability(names) if self.tasks else {}
        gap = default - float(np.nanmean(on["none"]))
        outcomes = []
        for name in names:
            moved = (on[name] - on["none"])[~np.isnan(on[name] - on["none"])] / gap
            error = float(moved.std(ddof=1) / math.sqrt(len(moved))) if len(moved) > 1 else math.nan
            cost = math.exp(costs["none"][0] - costs[name][0])
            share = adherence.get(name)
            outcomes.append(Outcome(name, float(moved.mean()), error, share, cost, costs[name][1], solved.get(name)))
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

    def _cost(self, name: str, replies: Sequence[Reply]) -> tuple[float, float]:
        """The mean log-probability of default replies' tokens under a cap, and the share of them that it changes."""
        turns = list(replayed(self.engine, replies, read=[], interventions=self._held_by(name), logprobs=True))
        tokens = sum(t.tokens for t in turns)
        return sum((t.logprob or 0) * t.tokens for t in turns) / tokens, sum(t.touched for t in turns) / tokens

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


def choose(outcomes: Sequence[Outcome], most: float = MAX_COST) -> tuple[Outcome, str]:
    """The cap to take, and why: of those that cost no more than allowed, the one that goes furthest."""
    best = ranked([o for o in outcomes if o.name != "none"], most)[0]
    limit = f"{100 * (most - 1):.0f}% perplexity"
    if best.cost <= most:
        return best, f"of the caps that cost at most {limit} it goes furthest"
    return best, f"no cap costs at most {limit}; this one costs least"


def _plain(o: Outcome) -> dict[str, Any]:
    return {k: v for k, v in vars(o).items() if k != "name"}


def table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """What each cap does, for people: the head and the rows, the front first."""
    head = ["cap", "of the way", "perplexity", "touched", "in role", "solved", "front"]
    rows = [
        [
            o.name,
            f"{o.way:.2f} ± {o.way_error:.2f}" if o.name != "none" else "0",
            f"× {o.cost:.3f}",
            f"{100 * o.touched:.0f}%",
            "" if o.adherence is None else f"{100 * o.adherence:.0f}%",
            "" if o.capability is None else f"{100 * o.capability:.0f}%",
            "yes" if o.front else "",
        ]
        for o in sorted(outcomes, key=lambda o: (not o.front, o.cost))
    ]
    told = [k for k in range(len(head)) if any(row[k] for row in rows)]
    return [head[k] for k in told], [[row[k] for k in told] for row in rows]


def write_tradeoff(path: str | Path, space: PersonaSpace, outcomes: Sequence[Outcome]) -> Path:
    """Draws the trade-off as an HTML page, the Pareto front as a line, the recommended cap marked."""
    capped = space.meta["caps"]["capped"]
    front = sorted((o for o in outcomes if o.front), key=lambda o: o.cost)

    def dots(some: Sequence[Outcome], name: str, colour: str, **more: Any) -> dict[str, Any]:
        said = [f"{o.name}<br>{o.way:.2f} of the way, × {o.cost:.3f}, {100 * o.touched:.0f}% of tokens" for o in some]
        return {
            "type": "scatter",
            "name": name,
            "x": [o.cost for o in some],
            "y": [o.way for o in some],
            "text": said,
            "hoverinfo": "text",
            "mode": "markers",
            "marker": {"color": colour, "size": 9},
            **more,
        }

    best = [o for o in outcomes if o.name == capped["is"]]
    data = [
        dots([o for o in outcomes if not o.front], "other caps", SOFT),
        dots(front, "the front", NEAR, mode="lines+markers", line={"color": NEAR, "shape": "hv"}),
        dots(best, "taken", FAR, marker={"color": FAR, "size": 15, "symbol": "star"}),
    ]
    layout = {
        "xaxis": {"title": {"text": "factor on the perplexity of default replies"}},
        "yaxis": {"title": {"text": "of the way from role replies to the default's"}},
        "shapes": [
            {
                "type": "line",
                "x0": MAX_COST,
                "x1": MAX_COST,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": SOFT, "dash": "dot"},
            }
        ],
    }
    head, rows = table(outcomes)
    blocks = [
        Block(
            "What each cap saves, and what it costs",
            "Up is better, left is better; the dotted line is the cost that a recommended cap may have.",
            {"data": data, "layout": layout},
            520,
        ),
        Block(
            "All of them",
            "Of the way: with its standard error over prompts. Perplexity: the factor on that of held-out default replies. "
            "Touched: the share of their tokens that it changes. In role: what the judge says of capped role replies.",
            head=head,
            rows=rows,
        ),
    ]
    lead = f"{capped['is']} is taken as “capped”: {capped['why']['because']}. {again(capped)}"
    return write_figures(path, f"Capping {space.meta['model']['id']}", lead, blocks)


def again(capped: Mapping[str, Any]) -> str:
    """What the cap that was taken does on prompts that it was not ranked by (the choice among the best few went by them, too),
    as a sentence."""
    found = capped["why"].get("again")
    if found is None:
        return ""
    return (
        f"On {capped['why']['again_prompts']} fresh prompts it goes {found['way']:.2f} ± {found['way_error']:.2f} of the way, "
        f"at × {found['cost']:.3f} perplexity."
    )
