"""Tries caps: what each takes from role replies against what it costs default ones, and which to take."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from personaspace.calibrate import Reply, Sample, default_range, named_cap, recommended, replayed
from personaspace.catalog import Role
from personaspace.engines import Engine
from personaspace.errors import UsageError
from personaspace.judge import KEPT, Item, Judge
from personaspace.prompts import Prompt, Sampling
from personaspace.report.figures import FAR, NEAR, SOFT, Block, write_figures
from personaspace.space import PersonaSpace

MAX_COST = 1.03
"""The factor on the perplexity of default replies that a recommended cap may have."""

CHOICES = (("default", 1), ("default", 25), ("default", 50), ("all", 25), ("all", 50), ("all", 75))


@dataclass(frozen=True)
class Outcome:
    """What a cap does.

    way: how far of the way from plain role replies to default ones its role replies lie, replayed through the model without a
    cap, at the space's layer. adherence: share of its role replies that the judge takes for the role. cost: factor on the
    perplexity of held-out default replies. touched: share of their tokens that it changes. capability: share of tasks solved.
    """

    name: str
    way: float
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
    """Tries every range with every percentile; returns the space with all of them as caps, the best as `capped`, and what
    each does, no cap (`none`) first."""
    caps = dict(named_cap(space, kind, p, layers) for layers in ranges for kind, p in CHOICES)
    space = PersonaSpace({**space.meta, "caps": {**space.meta["caps"], **caps}}, space.tensors)
    rng = np.random.default_rng(seed)
    asked = [sample.roles[k] for k in rng.permutation(len(sample.roles))[:prompts]]
    names = ["none", *caps]
    ways, adherences = _role_replies(engine, space, names, asked, judge)
    default = float(np.mean(_projections(engine, space, sample.held_out)))
    costs = {name: _cost(engine, space, name, sample.held_out[: 2 * prompts]) for name in names}
    solved = _capability(engine, space, names, tasks) if tasks else {}
    plain = ways["none"]
    outcomes = [
        Outcome(
            name,
            (ways[name] - plain) / (default - plain),
            adherences.get(name),
            math.exp(costs["none"][0] - costs[name][0]),
            costs[name][1],
            solved.get(name),
        )
        for name in names
    ]
    outcomes = pareto(outcomes)
    best, why = choose(outcomes)
    return recommended(space, best.name, {**_plain(best), "because": why}), outcomes


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
    capped = [o for o in outcomes if o.name != "none"]
    cheap = [o for o in capped if o.cost <= most]
    if cheap:
        best = max(cheap, key=lambda o: o.way)
        return (
            best,
            f"it goes furthest of the {len(cheap)} caps of {len(capped)} that cost at most {100 * (most - 1):.0f}% perplexity",
        )
    best = min(capped, key=lambda o: o.cost)
    return best, f"no cap of {len(capped)} costs at most {100 * (most - 1):.0f}% perplexity; this one costs least"


def _interventions(space: PersonaSpace, name: str) -> tuple[Any, ...]:
    return () if name == "none" else (space.cap(name),)


def _role_replies(
    engine: Engine, space: PersonaSpace, names: Sequence[str], asked: Sequence[Reply], judge: Judge | None
) -> tuple[dict[str, float], dict[str, float]]:
    """For each cap, the mean projection of its role replies, uncapped, and the share that the judge takes for the role."""
    sampling = Sampling(
        **{**space.meta["sampling"], "max_new_tokens": min(space.meta["sampling"]["max_new_tokens"], 64)}
    )
    prompts = [
        Prompt(r.messages, r.role, index=k, question=c, seed=k, interventions=_interventions(space, name))
        for c, name in enumerate(names)
        for k, r in enumerate(asked)
    ]
    found = sorted(engine.respond(prompts, sampling), key=lambda r: (r.prompt.question, r.prompt.index))
    replies = [Reply(r.prompt.role, r.prompt.messages, r.token_ids, r.text) for r in found]
    on = _projections(engine, space, replies)
    n = len(asked)
    ways = {name: float(np.nanmean(on[c * n : (c + 1) * n])) for c, name in enumerate(names)}
    if judge is None:
        return ways, {}
    descriptions = space.meta.get("descriptions", {})
    items = [
        Item(
            Role(role=r.role, description=descriptions.get(r.role, ""), instructions=("-",)),
            r.messages[-1]["content"],
            r.text,
        )
        for r in replies
    ]
    kept = [s.score == KEPT for s in judge.score(items)]
    return ways, {name: float(np.mean(kept[c * n : (c + 1) * n])) for c, name in enumerate(names)}


def _projections(engine: Engine, space: PersonaSpace, replies: Sequence[Reply]) -> list[float]:
    """Each reply's projection at the space's layer, without a cap; NaN for an empty one."""
    turns = replayed(engine, replies, read=[space.layer])
    unit = space.axis_at()
    return [float(t.activation[0] @ unit) if t.tokens else math.nan for t in turns]


def _cost(engine: Engine, space: PersonaSpace, name: str, replies: Sequence[Reply]) -> tuple[float, float]:
    """The mean log-probability of default replies' tokens under a cap, and the share of them that it changes."""
    turns = list(replayed(engine, replies, read=[], interventions=_interventions(space, name), logprobs=True))
    tokens = sum(t.tokens for t in turns)
    return sum((t.logprob or 0) * t.tokens for t in turns) / tokens, sum(t.touched for t in turns) / tokens


def _capability(engine: Engine, space: PersonaSpace, names: Sequence[str], tasks: Sequence[Task]) -> dict[str, float]:
    """For each cap, the share of tasks whose greedy reply holds the answer."""
    prompts = [
        Prompt(({"role": "user", "content": t.prompt},), question=c, index=k, interventions=_interventions(space, name))
        for c, name in enumerate(names)
        for k, t in enumerate(tasks)
    ]
    right = np.zeros((len(names), len(tasks)))
    for r in engine.respond(prompts, Sampling(temperature=0, max_new_tokens=64)):
        right[r.prompt.question, r.prompt.index] = bool(re.search(tasks[r.prompt.index].answer, r.text))
    return {name: float(right[c].mean()) for c, name in enumerate(names)}


def _plain(o: Outcome) -> dict[str, Any]:
    return {k: v for k, v in vars(o).items() if k != "name"}


def table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """What each cap does, for people: the head and the rows, the front first."""
    head = ["cap", "of the way", "perplexity ×", "tokens touched", "still the role", "tasks solved", "front"]
    rows = [
        [
            o.name,
            f"{o.way:.2f}",
            f"{o.cost:.3f}",
            f"{100 * o.touched:.0f}%",
            "" if o.adherence is None else f"{100 * o.adherence:.0f}%",
            "" if o.capability is None else f"{100 * o.capability:.0f}%",
            "yes" if o.front else "",
        ]
        for o in sorted(outcomes, key=lambda o: (not o.front, o.cost))
    ]
    return head, rows


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
        Block("All of them", "Still the role: what the judge says of capped role replies.", head=head, rows=rows),
    ]
    lead = f"{capped['is']} is taken as “capped”: {capped['why']['because']}."
    return write_figures(path, f"Capping {space.meta['model']['id']}", lead, blocks)
