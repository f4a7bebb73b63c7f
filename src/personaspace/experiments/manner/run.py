"""Whether the axis tells who speaks, or only how: roles crossed with manners of writing.

Instructions of a role suggest a manner as well: ghosts are told in richer words than consultants. Here ghosts answer in
points and consultants in verse. The study has no such control.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personaspace.catalog import DEFAULT, Catalog, Role
from personaspace.engines import Engine
from personaspace.engines.prompts import Message, Prompt, Sampling, rotation
from personaspace.errors import RunError, UsageError
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Names, Options, option
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.trials import Ask, Condition, Trials
from personaspace.experiments.manner.findings import AS_IT_IS, FAR, MANNERS, NEAR, NEUTRAL, POINTS, VERSE, Table
from personaspace.experiments.manner.page import Row, page
from personaspace.space import PUBLISHED as STUDY
from personaspace.space import PersonaSpace
from personaspace.space.readings import PROMPT, REPLY

PROMPT_TOKENS = 72

SENTENCES: Mapping[str, tuple[str, ...]] = {
    AS_IT_IS: ("",),
    POINTS: (
        "Answer in numbered points, in plain and sober words.",
        "Give your answer as a short list of dry facts.",
        "Put your reply in bullet points, brief and matter-of-fact.",
    ),
    VERSE: (
        "Answer in lines of verse, in rich and glowing images.",
        "Give your answer as a short poem of bright pictures.",
        "Put your reply in rhymed stanzas, lush and tender.",
    ),
    NEUTRAL: (
        "Answer in the language in which the question is asked.",
        "Give your answer to the question that is put here.",
        "Put your reply in the message that comes after this.",
    ),
}
"""What stands behind a role's instruction, in three wordings of about as many words. The neutral sentence asks for no
manner: what it does, any added sentence does."""


class MannerOptions(Options):
    """See the fields."""

    roles_near: Names = option(tuple(STUDY["assistant_end"]), "Roles of the Assistant's end, by name.")
    roles_far: Names = option(tuple(STUDY["far_end"]), "Roles of the far end, by name.")
    per_cell: int = option(
        12, "Prompts of each role in each manner: the same questions and instructions throughout.", ge=2, later=True
    )
    replies: int = option(4, "How many of these are answered as well; 0: only prompts are read.", ge=0)
    max_new_tokens: int = option(32, "At most that many tokens a reply.", ge=1)


PUBLISHED = MannerOptions(per_cell=240, replies=240, max_new_tokens=512)
"""The study crossed nothing; these are its number of questions and its replies' length."""


@dataclass(frozen=True)
class Cell:
    """One who in one manner. role: None is the default Assistant."""

    who: str
    group: str
    manner: str
    role: Role | None

    def system(self, k: int) -> str:
        """The k-th system prompt: instruction and sentence in rotation, so that each meets each; the instruction is the
        same in every manner. Empty where neither is there."""
        instructions = self.role.instructions if self.role else ("",)
        instruction, wording = rotation(k + 1, len(instructions), len(SENTENCES[POINTS]))[k].tolist()
        sentence = SENTENCES[self.manner][wording % len(SENTENCES[self.manner])]
        return f"{instructions[instruction]} {sentence}".strip()


def cells(options: MannerOptions, catalog: Catalog) -> list[Cell]:
    """Everybody in every manner: the near roles, the far ones, the default. Raises `UsageError` where a role stands
    there twice or an end has none, `CatalogError` for one that the catalogue lacks."""
    for flag, names in (("--roles-near", options.roles_near), ("--roles-far", options.roles_far)):
        if not names:
            raise UsageError(f"{flag}: expected at least one role's name")
    every = (*options.roles_near, *options.roles_far)
    if twice := next((name for name in every if every.count(name) > 1), None):
        raise UsageError(f"--roles-near, --roles-far: {twice} stands there twice; a role is of one end, and once")
    people: list[tuple[str, str, Role | None]] = [(n, NEAR, catalog.role(n)) for n in options.roles_near]
    people += [(n, FAR, catalog.role(n)) for n in options.roles_far]
    people += [(DEFAULT, DEFAULT, None)]
    return [Cell(who, group, manner, role) for who, group, role in people for manner in MANNERS]


def asks(options: MannerOptions, catalog: Catalog, n: int) -> list[Ask]:
    """The first n prompts of every cell; a cell's manner is its condition, so that the same item has the same seed in
    every manner. Raises `UsageError` where there are not as many questions, and what `cells` raises."""
    if n > len(catalog.questions):
        raise UsageError(f"--per-cell {n}: the catalogue {catalog.name} has {len(catalog.questions)} questions")
    requests = []
    for cell in cells(options, catalog):
        for k in range(n):
            messages: tuple[Message, ...] = ({"role": "user", "content": catalog.questions[k].question},)
            if system := cell.system(k):
                messages = ({"role": "system", "content": system}, *messages)
            requests.append(Ask(Condition(cell.manner), f"{cell.who} {k}", messages))
    return requests


def cost(options: MannerOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine: the prompts that are read, and the replies to some of them. Raises `UsageError`,
    `CatalogError`."""
    if options.replies > options.per_cell:
        raise UsageError(f"--replies {options.replies}: expected at most --per-cell, which is {options.per_cell}")
    prompts = len(asks(options, catalog, options.per_cell))
    replies = prompts // options.per_cell * options.replies
    new_tokens = replies * options.max_new_tokens
    return Cost(replies, (prompts + replies) * PROMPT_TOKENS + new_tokens, new_tokens)


def run(trials: Trials[MannerOptions]) -> Result:
    """Reads every prompt before the first word, and replies where they are asked for. Raises `PersonaSpaceError`."""
    options, space, catalog = trials.options, trials.space, trials.catalog
    for name in (*options.roles_near, *options.roles_far):
        space.direction(name)  # whoever is not in the space has no end of its axis: said before anything is asked
    if options.replies:
        space.drift(0.0)  # and so is a space that does not know the default's spread
    each = cells(options, catalog)
    requests = asks(options, catalog, options.per_cell)
    rows = _rows(each, requests, PROMPT, onsets(trials.engine, space, requests), [""] * len(requests))
    if options.replies:
        answered = asks(options, catalog, options.replies)
        # The part's name is in the replies' seeds, and has been the texts' from the start.
        texts = hashlib.sha256(json.dumps([list(a.messages) for a in answered]).encode()).hexdigest()[:8]
        sampling = Sampling(max_new_tokens=options.max_new_tokens)
        replied = trials.ask(answered, sampling, part=f"replies-{texts}")
        rows += _rows(each, answered, REPLY, [g.projection for g in replied], [g.text for g in replied])
    return evaluate(space, rows)


def onsets(engine: Engine, space: PersonaSpace, requests: Sequence[Ask]) -> list[float]:
    """Where each prompt lies on the axis before a word is said, at the space's layer."""
    prompts = [Prompt(a.messages, index=k) for k, a in enumerate(requests)]
    projections = [math.nan] * len(prompts)
    for r in engine.onsets(prompts, read=[space.layer]):
        assert r.activation is not None
        projections[r.prompt.index] = float(r.activation[0].float().cpu() @ space.axis_at())
    return projections


def _rows(
    each: Sequence[Cell], requests: Sequence[Ask], reading: str, projections: Sequence[float], texts: Sequence[str]
) -> list[dict[str, Any]]:
    n = len(requests) // len(each)
    return [
        {
            "reading": reading,
            "who": each[k // n].who,
            "group": each[k // n].group,
            "manner": each[k // n].manner,
            "question": k % n,
            "system": ask.messages[0]["content"] if len(ask.messages) > 1 else "",
            "user": ask.messages[-1]["content"],
            "text": text,
            "shape": shape(text) if text.strip() else None,
            "projection": projection,
        }
        for k, (ask, projection, text) in enumerate(zip(requests, projections, texts, strict=True))
    ]


_POINT = re.compile(r"^\s*(?:\d+[.)]|[-*•–])\s", re.M)
_VERSE_LINE = 60
"""Characters of a line, above which it is prose."""


def shape(text: str) -> str:
    """Whether a reply looks like `points`, `lines` of verse, or `prose`: a blunt rule over its lines. The last line,
    which the reply's length may have cut, counts for nothing but points."""
    if _POINT.search(text):
        return "points"
    lines = [line for line in text.splitlines() if line.strip()]
    return "lines" if len(lines) > 1 and all(len(line) <= _VERSE_LINE for line in lines[:-1]) else "prose"


def evaluate(space: PersonaSpace, rows: Sequence[Row]) -> Result:
    """Places in standard deviations of the default, and what they say. It asks nothing. Raises `RunError` where the
    default's prompts all lie at one place."""
    plain = [
        r["projection"] for r in rows if r["reading"] == PROMPT and r["group"] == DEFAULT and r["manner"] == AS_IT_IS
    ]
    middle, spread = float(np.mean(plain)), float(np.std(plain, ddof=1))
    if not spread > 0:
        raise RunError(
            f"the default's {len(plain)} prompts all lie at {middle:.3f}; there is no scale to tell places in"
        )
    placed = [
        {**r, "place": (r["projection"] - middle) / spread if r["reading"] == PROMPT else -space.drift(r["projection"])}
        for r in rows
    ]
    readings = list(dict.fromkeys(r["reading"] for r in rows))
    return page(space, {reading: table_of(placed, reading) for reading in readings}, placed)


def table_of(rows: Sequence[Row], reading: str) -> Table:
    """The places of a reading as a table, everybody and every question in the rows' order."""
    chosen = [r for r in rows if r["reading"] == reading]
    groups = {r["who"]: r["group"] for r in chosen}
    who = list(groups)
    places = np.full((len(who), len(MANNERS), 1 + max(r["question"] for r in chosen)), math.nan)
    for r in chosen:
        places[who.index(r["who"]), MANNERS.index(r["manner"]), r["question"]] = r["place"]
    return Table(tuple(who), tuple(groups.values()), places)


EXPERIMENT = Experiment("manner", PUBLISHED, cost, run)
