"""Whether the axis is there in the base model, before post-training.

It is taken from a base model by the same texts, and laid on that model's own completions (the paper's section on base models).
"""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from personaspace.catalog import Catalog
from personaspace.engines import Engine
from personaspace.engines.prompts import Design, Sampling
from personaspace.errors import UsageError
from personaspace.experiments import data
from personaspace.experiments.base_model.axis import by_lot, likeness
from personaspace.experiments.base_model.page import BaseModelFindings, page
from personaspace.experiments.base_model.people import BY_WORDS, HELPING, PEOPLE, SPIRITUAL, WHOSE, Completed
from personaspace.experiments.compare.findings import (
    FEWEST,
    LEAST_REPEATABLE,
    Places,
    compare,
    repeatability,
    standardised,
)
from personaspace.experiments.kit.beside import rank_correlation, set_beside
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Numbers, Options, option
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.trials import PLAIN, Ask, Condition, Trials, beside_axis, steered
from personaspace.holding.controls import BesideControls
from personaspace.judges import ADHERENCE
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.space.readings import PROMPT
from personaspace.stats.intervals import shares_of, trend

PROMPT_TOKENS, OPENING_TOKENS = 72, 8
COLUMNS = (
    "role",
    "place",
    "base_place",
    "condition",
    "alpha",
    "control",
    "item",
    "opening",
    "text",
    "projection",
    "kind",
)
"""Of the results' table: a row is a role's place on both axes, or a completion."""


class BaseModelOptions(Options):
    """See the fields."""

    base: str = option(
        "",
        "The base model: a Hub id, a folder or a GGUF file. Without one the space's own model, read as a plain "
        "transcript, stands in for it.",
    )
    roles: str = option("70", "all, a number of them spread over the list, or names.")
    per_role: int = option(4, "Prompts a role, or replies where the space is of them, in rotation.", ge=1)
    questions: int = option(60, "Questions of the catalogue.", ge=2)
    default_responses: int = option(140, "The same of the default Assistant.", ge=2)
    openings: int = option(16, "Beginnings of texts that the steered base model goes on with.", ge=1, le=16)
    samples: int = option(2, "Completions of each opening under each strength.", ge=1)
    alphas: Numbers = option((-0.3, -0.15, 0.0, 0.15, 0.3), "Steering strengths, in units of the residual norm.")
    controls: int = option(
        20, "Random directions, along which the completions are displaced as far; 0: none.", ge=0, later=True
    )
    control_alphas: Numbers = option((-0.3, 0.3), "Strengths at which that is done.", later=True)
    max_new_tokens: int = option(24, "At most that many tokens a reply, and a completion.", ge=1)


PUBLISHED = BaseModelOptions(
    roles="all", per_role=1200, questions=240, default_responses=1200, samples=100, max_new_tokens=512
)


def conditions(options: BaseModelOptions) -> list[Condition]:
    """Steering from the far end to the Assistant's."""
    return steered(sorted({*options.alphas, 0.0}))


def cost(options: BaseModelOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine."""
    roles = len(catalog.select(options.roles, options.questions).roles)
    replies = roles * options.per_role + options.default_responses
    completions = len(asks(options)) + len(control_asks(options))
    new = options.max_new_tokens
    of_replies = Cost(replies, replies * (new + PROMPT_TOKENS), replies * new)
    return of_replies + Cost(completions, completions * (new + OPENING_TOKENS), completions * new)


def asks(options: BaseModelOptions) -> list[Ask]:
    """Every opening, as often as asked for, under every strength."""
    texts = [r["text"] for r in data.lines("openings.jsonl")[: options.openings]]
    return [
        Ask(condition, f"{k}/{sample}", ({"role": "text", "content": text},))
        for condition in conditions(options)
        for k, text in enumerate(texts)
        for sample in range(options.samples)
    ]


def control_asks(options: BaseModelOptions) -> list[Ask]:
    """Each opening once under some of the strengths, along random directions and a shuffled axis."""
    pushed = beside_axis([c for c in conditions(options) if c.alpha in options.control_alphas], options.controls)
    first = [a for a in asks(options) if a.condition == PLAIN and a.item.endswith("/0")]
    return [replace(ask, condition=condition) for condition in pushed for ask in first]


def run(trials: Trials[BaseModelOptions]) -> Result:
    """Maps the base model in `base/`, and steers it in `completions/` where its shape is the space's. Raises
    `PersonaSpaceError`."""
    options, space = trials.options, trials.space
    catalog = trials.catalog.select(options.roles, options.questions)
    shared = {r.role for r in catalog.roles} & set(space.roles)
    if len(shared) < FEWEST:
        raise UsageError(f"--roles {options.roles}: the space has {len(shared)} of them; {FEWEST} at least are needed")
    base = trials.load(options.base or trials.engine.info.id, template=False)
    layer = same_depth(space.layer, len(space.tensors["axis"]), base.info.layers)
    design = Design(per_role=options.per_role, default_responses=options.default_responses)
    mapper = Mapper(
        base,
        catalog,
        trials.folder / "base",
        MapOptions(
            read="prompt" if space.reading == PROMPT else "reply",  # like is compared with like
            design=design,
            prompts=design,
            sampling=Sampling(max_new_tokens=options.max_new_tokens),
            seed=options.seed,
            layer=layer,
            min_responses=1,
        ),
        trials.watcher,
    )
    mapped = mapper.map(trials.judges.make(ADHERENCE))
    assert mapper.included is not None
    like = likeness(mapper.included, mapped, space, options.seed)
    written = _completions(trials, base) if (base.info.layers, base.info.hidden) == space.tensors["axis"].shape else []

    ours = Path(space.meta["model"]["id"]).name
    names = (ours, Path(options.base).name.removesuffix(".gguf") if options.base else f"{ours} without its template")
    here, base_places = Places.of(space), Places.of(mapped)
    roles = [r for r in here.roles if r in set(base_places.roles)]
    both = np.stack([standardised(of.at(roles)[0]) for of in (here, base_places)], axis=1)
    places: dict[str, tuple[float, float]] = dict(zip(roles, map(tuple, both.tolist()), strict=True))
    repeatable = repeatability(space, roles)
    again = like.again if like.again >= LEAST_REPEATABLE else nan
    shares = trends = None
    beside: dict[str, BesideControls] = {}
    if written:
        every_reply = pd.DataFrame(written).assign(cap="")
        replies = every_reply[every_reply.control.isna()]
        judged = replies[replies.kind.notna()]
        aside = every_reply[every_reply.control.notna() & every_reply.kind.notna()]
        under = [c.name for c in conditions(options)]
        shares = {name: shares_of(replies.kind[replies.condition == name], PEOPLE) for name in under}
        # Drawn by opening, of which there are few: the completions of one are alike.
        trends = {kind: trend(judged.alpha, judged.kind == kind, list(judged.opening)) for kind in PEOPLE}
        for kind in (HELPING, SPIRITUAL):
            if effect := set_beside(judged, aside, lambda of, kind=kind: rank_correlation(of.alpha, of.kind == kind)):  # type: ignore[misc]
                beside[f"steering, {kind}"] = effect
    findings = BaseModelFindings(
        names=names,
        standin=not options.base,
        layers=(space.layer, mapped.layer),
        pair=compare([(names[0], space), (names[1], mapped)], options.seed)[0],
        like=like,
        ceiling=(again * (1.0 if repeatable is None else repeatable)) ** 0.5,
        places=places,
        shares=shares,
        trends=trends,
        beside=beside,
        by_lot=by_lot(mapped, space) if like.cosines else nan,
        judge=trials.judges.name,
    )
    every = [*written, *({"role": r, "place": x, "base_place": y} for r, (x, y) in places.items())]
    return page(findings, [{**dict.fromkeys(COLUMNS), **r} for r in every])


def same_depth(layer: int, layers: int, others: int) -> int:
    """The layer that lies as deep among `others` as one does among `layers`: itself where there are as many."""
    return round(layer * (others - 1) / max(1, layers - 1))


def _completions(trials: Trials[BaseModelOptions], base: Engine) -> list[dict[str, Any]]:
    """What the steered base model writes, and whose words they seem to be: a row each."""
    options, requests, pushed = trials.options, asks(trials.options), control_asks(trials.options)
    texts, judges, watcher = trials.catalog, trials.judges, trials.watcher
    folder = trials.folder / "completions"
    inner = Trials(base, trials.space, folder, trials.name, options, catalog=texts, judges=judges, watcher=watcher)
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    with inner.open(len(requests) + len(pushed)):
        replies = inner.ask(requests, sampling)
        replies += inner.ask(pushed, sampling, part="control", seeds="part")
        requests += pushed
        completed = [Completed(a.messages[0]["content"], g.text) for a, g in zip(requests, replies, strict=True)]
        kinds = inner.judge(judges.make(WHOSE, BY_WORDS), completed, "people")
    return [
        {
            "condition": g.condition,
            "alpha": a.condition.alpha,
            "control": a.condition.control,
            "item": g.item,
            "opening": a.messages[0]["content"],
            "text": g.text,
            "projection": g.projection,
            "kind": None if kind is None else PEOPLE[kind],
        }
        for a, g, kind in zip(requests, replies, kinds, strict=True)
    ]


EXPERIMENT = Experiment("base-model", PUBLISHED, cost, run)
