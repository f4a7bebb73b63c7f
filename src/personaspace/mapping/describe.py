"""A trait of one's own from a description: who writes its instructions, and whether its direction tells what it should.

The direction is read on training questions. Whether it tells is seen on questions that it was not made from, under texts that
it was not made from either: a direction that only knows its own texts is no trait. Of a wording or two this can't be seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personaspace.catalog import Catalog, Trait, read_records
from personaspace.engines import Engine
from personaspace.errors import CatalogError, UsageError
from personaspace.files import plain
from personaspace.mapping.trait_stage import with_contrasts
from personaspace.mapping.traits import TraitReadings, read_traits
from personaspace.space import PersonaSpace
from personaspace.space.traits import with_traits
from personaspace.stats.contrasts import Contrast, Floats, shared_between_wordings, tells
from personaspace.stats.intervals import Estimate, share
from personaspace.stats.vectors import Ints

TRAINING, HELD_OUT = 16, 24
"""Questions that the direction is made from, and those that it is tried on."""

LEAST = 0.8
"""The lower bound of the area under the curve from which on a direction counts as telling."""

FEWEST_WORDINGS = 3
"""Wordings that share no text, under which nothing is claimed: what they share can't be told from what each does by itself."""

CONTROLS = 200
WORDINGS = 4

FILE, TEMPLATES = "the file", "templates"

REQUEST = """Write instructions for an actor who answers questions.
The trait: {name}. {description}

Write {n} instructions that make every answer show as much of this trait as possible, and {n} that make every answer
show the opposite. Use different words in each. One instruction a line, beginning with MORE: or LESS: and nothing else."""

_LINE = re.compile(r"^\W*(?:\d+\W+)?(MORE|LESS)\W*:\W*(\S.{10,400})$", re.IGNORECASE)


@dataclass(frozen=True)
class Written:
    """Contrasting instructions, and who wrote them. problem: why it was not who was asked to."""

    trait: Trait
    by: str
    problem: str = ""


def from_templates(name: str, description: str, problem: str = "") -> Written:
    """Instructions made of the description alone."""
    called, meaning = name.replace("_", " "), description.strip().rstrip(".")
    bring_out = (
        f"You are very {called}. {meaning}.",
        f"Be as {called} as you can in every answer: {meaning}.",
        f"Whatever you are asked, let it be plain to see that you are {called}. {meaning}.",
        f"Everybody knows you as extremely {called}. {meaning}. Answer as you always do.",
    )
    suppress = (
        f"You are not at all {called}. Never is it true of you that: {meaning}.",
        f"Avoid being {called} in every answer. Do the opposite of this: {meaning}.",
        f"Whatever you are asked, let nobody see anything {called} in you. Not this: {meaning}.",
        f"Everybody knows you as the opposite of {called}. It is the reverse of this: {meaning}. Answer as you always do.",
    )
    trait = Trait(trait=name, definition=description, bring_out=bring_out, suppress=suppress)
    return Written(trait, TEMPLATES, problem)


class _Instructions(Trait):
    trait: str = "given"


def from_file(name: str, description: str, path: Path) -> Written:
    """Instructions of a JSON file, one line: `{"bring_out": [...], "suppress": [...]}`. Raises `CatalogError`."""
    expected = 'expected one line, {"bring_out": […], "suppress": […]}'
    try:
        records = list(read_records(path, _Instructions))
    except CatalogError as e:
        raise CatalogError(f"{e}; {expected}") from None
    if len(records) != 1:
        raise CatalogError(f"{path}: found {len(records)} lines; {expected}")
    texts = {side: tuple(dict.fromkeys(getattr(records[0], side))) for side in ("bring_out", "suppress")}
    definition = description or records[0].definition
    return Written(Trait(trait=name, definition=definition, **texts), FILE)


def from_writer(name: str, description: str, write: Callable[[str], str], by: str) -> Written:
    """Instructions that a model writes, asked in words; templates where what it writes is none."""
    text = write(REQUEST.format(name=name.replace("_", " "), description=description, n=WORDINGS))
    matches = [match for line in text.splitlines() if (match := _LINE.match(line.strip()))]
    more, less = (
        list(dict.fromkeys(m[2].strip() for m in matches if m[1].upper() == side)) for side in ("MORE", "LESS")
    )
    n = min(len(more), len(less), WORDINGS)
    if n < FEWEST_WORDINGS or set(more) & set(less):
        counts = f"{len(more)} that bring it out and {len(less)} that suppress it"
        problem = f"{by} wrote {counts}; three of each are needed"
        return from_templates(name, description, problem)
    trait = Trait(trait=name, definition=description, bring_out=tuple(more[:n]), suppress=tuple(less[:n]))
    return Written(trait, by)


@dataclass(frozen=True)
class Telling:
    """What a direction tells of prompts that it was not made from. auc: how often what is brought out lies above what is
    suppressed, of all comparisons, over wordings; paired: of one and the same question. shuffled, random: what 95 of 100
    directions stay within that were made from half-swapped labels, or of nothing (either way: 0.5 and more). wordings: whether
    they were held out; disjoint: how many there are that share no text; shared: what two of them have in common
    (`stats.contrasts.shared_between_wordings`)."""

    auc: Estimate
    paired: Estimate
    shuffled: float
    random: float
    questions: int
    wordings: bool
    disjoint: int
    shared: Estimate

    @property
    def enough(self) -> bool:
        """Whether the direction counts as telling."""
        return not self.problem()

    def problem(self) -> str:
        """Why it does not count as telling, for people; nothing where it does."""
        if self.disjoint < FEWEST_WORDINGS:
            few = f"{self.disjoint} wording{'s' if self.disjoint > 1 else ''} that share{'' if self.disjoint > 1 else 's'}"
            return f"{few} no text can't tell a trait from its texts; {FEWEST_WORDINGS} are needed on both sides"
        if not self.auc.low >= LEAST:
            return f"the lower bound is under {LEAST:.0%}"
        return "" if self.shared.low > 0 else "what its wordings have in common can't be told from nothing"


def telling(training: Contrast, held_out: Floats, wording: Ints, seed: int = 0) -> Telling:
    """A contrast tried on further pairs `[pairs, 2, hidden]`, each under a wording `[pairs]` of the contrast's numbers; those
    of different wordings share no text."""
    disjoint = len(np.intersect1d(training.wording, wording))
    several = len(np.unique(training.wording)) > 1
    rng = np.random.default_rng(seed)
    n = len(training.differences)

    def projected(signs: Floats) -> Floats:
        """Held-out prompts on directions made without their wording, `[pairs, 2]`."""
        places = np.empty(held_out.shape[:2])
        for k in np.unique(wording):
            made_from = training.wording != k if several else np.ones(n, dtype=bool)
            vector = (signs[made_from, None] * training.differences[made_from]).mean(0)
            places[wording == k] = held_out[wording == k] @ (vector / max(np.linalg.norm(vector), 1e-30))
        return places

    def area(places: Floats) -> float:
        higher = places[:, 0][:, None] - places[:, 1][None]
        value = float((higher > 0).mean() + (higher == 0).mean() / 2)
        return max(value, 1 - value)

    places = projected(np.ones(n))
    half = np.where(np.arange(n) % 2, -1.0, 1.0)
    shuffled = [area(projected(rng.permutation(half))) for _ in range(CONTROLS)]
    drawn = [area(held_out @ rng.normal(size=held_out.shape[-1])) for _ in range(CONTROLS)]
    return Telling(
        tells(places[:, 0], places[:, 1], wording.tolist(), seed),
        share((places[:, 0] > places[:, 1]).tolist()),
        float(np.quantile(shuffled, 0.95)),
        float(np.quantile(drawn, 0.95)),
        len(places),
        several,
        disjoint,
        shared_between_wordings(training, Contrast(held_out[:, 0] - held_out[:, 1], wording)),
    )


@dataclass(frozen=True)
class Described:
    """A trait from a description: its instructions, what was read of it at every layer, and whether that tells."""

    written: Written
    readings: TraitReadings = field(repr=False)
    telling: Telling

    def kept_in(self, space: PersonaSpace) -> PersonaSpace:
        """The space with it as one of its traits, and with what is known of it."""
        trait = self.written.trait
        record: dict[str, Any] = {
            "description": trait.definition,
            "from": "a description",
            "written_by": self.written.by,
            "instructions": {"bring_out": list(trait.bring_out), "suppress": list(trait.suppress)},
            "telling": plain(self.telling),
        }
        if space.knows_axis_reliability:
            # The axis' noise by direction is known where the run is: here it is taken to be the worst.
            noise = np.zeros((0, space.tensors["axis"].shape[1]))
            return with_contrasts(space, self.readings, self.readings.vectors(), {}, noise, {trait.trait: record})
        contrast = self.readings.contrast(trait.trait, space.layer)
        figures = {
            "trait_reliability": torch.tensor([contrast.reliability()]),
            "trait_reliability_by_wording": torch.tensor([contrast.reliability_by_wording()]),
        }
        return with_traits(space, [trait.trait], self.readings.vectors(), figures, {trait.trait: record})


def describe(engine: Engine, space: PersonaSpace, catalog: Catalog, written: Written, seed: int = 0) -> Described:
    """Reads a trait on training questions, and tries its direction, at the space's layer, on others. Raises `UsageError`.

    >>> described = describe(engine, space, catalog, from_templates("pedantic", "Corrects what does not matter."))
    >>> if described.telling.enough:
    ...     space = described.kept_in(space)
    """
    if len(catalog.questions) < TRAINING + HELD_OUT:
        raise UsageError(
            f"the catalogue {catalog.name} has {len(catalog.questions)} questions; {TRAINING} to make a direction from and "
            f"{HELD_OUT} to try it on are needed"
        )
    space.check_model(engine.info)
    order, traits = np.random.default_rng(seed).permutation(len(catalog.questions)).tolist(), {0: written.trait}
    training = read_traits(engine, traits, catalog, questions=TRAINING, order=order[:TRAINING])
    on = order[TRAINING : TRAINING + HELD_OUT]
    tried = read_traits(engine, traits, catalog, questions=HELD_OUT, order=on, layers=[space.layer])
    name = written.trait.trait
    pairs = tried.sides[name][:, :, 0].double().numpy()
    contrast = training.contrast(name, space.layer)
    return Described(written, training, telling(contrast, pairs, tried.wordings[name], seed))


def lines(described: Described) -> list[str]:
    """What was found, for people."""
    t, written = described.telling, described.written
    name = written.trait.trait.replace("_", " ")
    instructions = len(written.trait.bring_out), len(written.trait.suppress)
    by = f"{instructions[0]} instructions that bring {name} out and {instructions[1]} that suppress it, by {written.by}"
    where = "questions and wordings" if t.wordings else "questions"
    sentences = [by + (f" ({written.problem})" if written.problem else "")]
    sentences.append(
        f"on {t.questions} held-out {where}, what is brought out lies above what is suppressed in {t.auc:.0%} of all "
        f"comparisons, and in {t.paired:.0%} of those to one question"
    )
    sentences.append(
        f"by chance (95 of 100): {t.shuffled:.0%} along directions of swapped labels, {t.random:.0%} along random ones"
    )
    if t.disjoint < FEWEST_WORDINGS:
        sentences.append(t.problem())
    elif t.auc.low <= max(t.shuffled, t.random):
        sentences.append("so that directions that know nothing of it tell the two sides apart about as well")
    return sentences


def described_traits(space: PersonaSpace) -> Mapping[str, Mapping[str, Any]]:
    """A space's traits that came from a description, with what is known of each."""
    records: Mapping[str, Mapping[str, Any]] = space.meta.get("trait_records", {})
    return {name: record for name, record in records.items() if record.get("from")}
