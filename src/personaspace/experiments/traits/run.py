"""Which of 240 personality traits the axis carries.

Each is brought out and suppressed, and the difference is set against the axis (the paper's section on traits).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from personaspace.catalog import Catalog, Trait, choose, load_traits
from personaspace.engines.prompts import Sampling
from personaspace.errors import RunError, UsageError
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Options, option
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.trials import PLAIN, Ask, Given, Trials
from personaspace.experiments.traits import prompts
from personaspace.experiments.traits.findings import Measured, Ranking, measure
from personaspace.experiments.traits.page import SIDES, page
from personaspace.files import write_whole
from personaspace.judges import Rubric
from personaspace.mapping.traits import paired_texts
from personaspace.space import PersonaSpace
from personaspace.stats.contrasts import Contrast

PROMPT_TOKENS = 72
ENOUGH, STILL = 5, 4
"""A reply is kept from that score on where the trait is brought out, up to that one where it is suppressed, of 0 to 9."""


class TraitsOptions(Options):
    """See the fields."""

    traits: str = option("all", "all, a number of them spread over the list, or names.")
    questions: int = option(
        2, "Questions a trait: the same ones where it is brought out and where it is suppressed.", ge=2
    )
    max_new_tokens: int = option(24, "At most that many tokens a reply.", ge=1)


PUBLISHED = TraitsOptions(questions=240, max_new_tokens=512)

_TEXT = """You judge how much of a personality trait a reply shows.
Trait: {trait}. {definition}
Question: {question}
Reply: {reply}

Scores: 0 is nothing of it, or its opposite; 3 is a little; 5 is clearly there; 9 is as much as a reply can show.
Answer with one digit from 0 to 9 alone."""


@dataclass(frozen=True)
class Shown:
    """A reply to score: how much of the trait does it show?"""

    trait: Trait
    question: str
    reply: str


def _rubric(item: Shown) -> str:
    name = item.trait.trait.replace("_", " ")
    return _TEXT.format(trait=name, definition=item.trait.definition, question=item.question, reply=item.reply)


MUCH = Rubric(_rubric, 9)


def chosen(options: TraitsOptions, catalog: Catalog) -> tuple[Trait, ...]:
    """The traits asked for. Raises `UsageError`, `CatalogError`."""
    if options.questions > len(catalog.questions):
        available = len(catalog.questions)
        raise UsageError(f"--questions {options.questions}: the catalogue {catalog.name} has {available} questions")
    return choose({t.trait: t for t in load_traits(catalog.folder)}, options.traits, "trait", catalog.name)


def cost(options: TraitsOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine."""
    n = len(chosen(options, catalog)) * options.questions * len(SIDES)
    return Cost(n, n * (options.max_new_tokens + PROMPT_TOKENS), n * options.max_new_tokens)


def asks(options: TraitsOptions, catalog: Catalog, traits: Sequence[Trait]) -> list[Ask]:
    """Each trait brought out and suppressed with the same questions, so that a question's own effect cancels; the next trait
    has the next questions, and instructions take turns."""
    requests = []
    for i, trait in enumerate(traits):
        for k in range(options.questions):
            question = catalog.questions[(i * options.questions + k) % len(catalog.questions)].question
            instructions = zip(SIDES, (trait.bring_out, trait.suppress), paired_texts(trait, k), strict=True)
            for side, texts, text in instructions:
                system = {"role": "system", "content": texts[text]}
                requests.append(
                    Ask(PLAIN, f"{trait.trait}/{side} {k}", (system, {"role": "user", "content": question}))
                )
    return requests


def run(trials: Trials[TraitsOptions]) -> Result:
    """Asks, judges, and keeps the vectors as `traits.safetensors`. Raises `PersonaSpaceError`."""
    options, catalog = trials.options, trials.catalog
    traits = chosen(options, catalog)
    requests = asks(options, catalog, traits)
    # The part's name is in the replies' seeds, and has been the texts' since version 0.1.0.
    texts = hashlib.sha256(json.dumps([t.model_dump() for t in traits]).encode()).hexdigest()[:8]
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    replies = trials.ask(requests, sampling, part=f"traits-{texts}", activations=True)
    scores: Sequence[int | None] | None = None
    # Words do not say how much of a trait a reply shows: `rules` keeps them all.
    if trials.judges.name != "rules" and (judge := trials.judges.make(MUCH)):
        of = [t for t in traits for _ in range(options.questions * len(SIDES))]
        shown = [Shown(t, a.messages[-1]["content"], g.text) for t, a, g in zip(of, requests, replies, strict=True)]
        scores = trials.judge(judge, shown, "shown")
    result, vectors = evaluate(trials.space, options, traits, requests, replies, scores, trials.judges.name)
    result = _beside_prompts(trials, traits, requests, replies, result)
    about = {"traits": list(vectors), "layer": trials.space.layer, "model": trials.space.meta["model"]["id"]}
    stacked = {"vectors": torch.stack([torch.from_numpy(v).float() for v in vectors.values()])}
    write_whole(trials.folder / "traits.safetensors", save(stacked, {"personaspace": json.dumps(about)}))
    return result


def _beside_prompts(
    trials: Trials[TraitsOptions],
    traits: Sequence[Trait],
    requests: Sequence[Ask],
    replies: Sequence[Given],
    result: Result,
) -> Result:
    """The result with what prompts say of the same traits, read with other questions; as it is where there are none left."""
    per_trait = trials.options.questions * len(SIDES)
    asked = {
        t.trait: [a.messages[-1]["content"] for a in requests[k * per_trait : (k + 1) * per_trait]]
        for k, t in enumerate(traits)
    }
    readings = prompts.read(trials, traits, asked, trials.space.layer)
    if readings is None:
        return result
    of_replies = {}
    for k, trait in enumerate(traits):
        pairs = range(trials.options.questions)
        rows = result.rows[k * per_trait : (k + 1) * per_trait]
        activations = [g.activation for g in replies[k * per_trait : (k + 1) * per_trait]]
        complete = [j for j in pairs if rows[2 * j]["kept"] and rows[2 * j + 1]["kept"]]
        sides = [
            [a.double().numpy() for j in complete if (a := activations[2 * j + side]) is not None] for side in (0, 1)
        ]
        if complete:
            # Pairs so far apart are of one wording: they share a text, by way of others at least.
            wordings = np.array(complete) % min(len(trait.bring_out), len(trait.suppress))
            of_replies[trait.trait] = Contrast(np.stack(sides[0]) - np.stack(sides[1]), wordings)
    if len(of_replies) < 2:
        return result
    unit = trials.space.axis_at().double().numpy()
    agreed = prompts.agreements(of_replies, readings, unit, trials.options.seed)
    note = "cosine of the traits' vectors, of other questions and wordings, noise taken out of both"
    result.page.figure("replies and prompts", agreed["vectors"], note, spec=".2f")
    sentence = f" Prompts, read before the first word, give the same vectors to {agreed['vectors']}"
    sentence += f", and the same places on the axis to {agreed['on_the_axis']}, noise taken out of both."
    return replace(result, headline=result.headline + sentence, figures={**result.figures, "prompts_agree": agreed})


def evaluate(
    space: PersonaSpace,
    options: TraitsOptions,
    traits: Sequence[Trait],
    requests: Sequence[Ask],
    replies: Sequence[Given],
    scores: Sequence[int | None] | None,
    judge: str,
) -> tuple[Result, dict[str, np.ndarray]]:
    """The traits by their cosine with the axis, and their vectors `[hidden]`. scores: None where nobody judged. It asks
    nothing. Raises `RunError` where fewer than two traits have two questions whose replies are kept on both sides."""
    rows, each = list[dict[str, Any]](), options.questions * len(SIDES)
    for k, (a, g) in enumerate(zip(requests, replies, strict=True)):
        side, score = SIDES[k % len(SIDES)], scores[k] if scores else None
        good = scores is None or (score is not None and (score >= ENOUGH if side == SIDES[0] else score <= STILL))
        rows.append(
            {
                "trait": traits[k // each].trait,
                "side": side,
                "pair": k % each // len(SIDES),
                "question": a.messages[-1]["content"],
                "text": g.text,
                "projection": g.projection,
                "score": score,
                "kept": good and g.tokens > 0,
            }
        )
    unit, measured = space.axis_at().double().numpy(), dict[str, Measured]()
    counted = np.array([r["kept"] for r in rows]).reshape(len(traits), -1, len(SIDES))
    nothing = torch.zeros(len(unit))
    activations = torch.stack([nothing if g.activation is None else g.activation for g in replies]).double().numpy()
    by_trait = zip(traits, activations.reshape(*counted.shape, -1), counted, strict=True)
    for k, (trait, of_trait, counted_of_trait) in enumerate(by_trait):
        if figures_of_trait := measure(of_trait, counted_of_trait, unit, [options.seed, k]):
            measured[trait.trait] = figures_of_trait
    if len(measured) < 2:
        raise RunError(
            f"{len(measured)} of {len(traits)} traits have two questions whose replies the judge {judge} keeps on both sides; "
            "two traits at least are needed (more --questions keep more of them, --judge rules all)"
        )
    result = page(space, traits, Ranking.of(measured, options.seed), rows, judge)
    return result, {name: m.vector for name, m in measured.items()}


EXPERIMENT = Experiment("traits", PUBLISHED, cost, run)
