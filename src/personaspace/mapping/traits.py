"""Reads traits before the first word: what brings a trait out against what suppresses it, question by question, on any engine.

Each trait is asked questions of its own in rotation, and every question under one instruction of either side, so that the
question's own effect cancels in the pair (the paper's section on traits; `stats.contrasts`). A trait's prompts depend on its
place in the catalogue alone, so that further traits or questions leave those that were read as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from personaspace.catalog import Catalog, Trait, choose, load_traits
from personaspace.engines import Engine
from personaspace.engines.prompts import Message, Prompt
from personaspace.engines.protocol import Layers
from personaspace.errors import UsageError
from personaspace.stats.contrasts import Contrast
from personaspace.stats.vectors import Ints
from personaspace.watcher import Watcher

QUESTIONS = 8
"""Questions a trait unless told otherwise: with its two sides 16 prompts, as many as a role's."""

STRIDE = 8
"""Questions by which the next trait's begin further on, however many it is asked."""

SIDES = ("brought out", "suppressed")


def chosen_traits(selection: str, catalog: Catalog) -> dict[int, Trait]:
    """Traits by their places in the catalogue: `all`, a number spread evenly over it, or names. Raises `UsageError`,
    `CatalogError`."""
    traits = load_traits(catalog.folder)
    places = {t.trait: k for k, t in enumerate(traits)}
    return {places[t.trait]: t for t in choose({t.trait: t for t in traits}, selection, "trait", catalog.name, least=1)}


def check_questions(questions: int, catalog: Catalog) -> None:
    """Raises `UsageError` where a trait can't be asked so many different questions."""
    if not 2 <= questions <= len(catalog.questions):
        raise UsageError(
            f"trait_questions={questions}: expected 2 to {len(catalog.questions)}, the questions that are asked"
        )


def paired_texts(trait: Trait, pair: int) -> tuple[int, int]:
    """Which text brings the trait out in that pair, and which suppresses it. Pairs go round as many wordings as the side with
    fewer texts has, and those of different wordings share no text: further texts of the other side take turns within one.

    >>> trait = Trait(trait="terse", bring_out=["a", "b"], suppress=["c", "d", "e"])
    >>> [paired_texts(trait, pair) for pair in range(4)]
    [(0, 0), (1, 1), (0, 2), (1, 1)]
    """
    wordings = min(len(trait.bring_out), len(trait.suppress))
    turn, wording = divmod(pair, wordings)
    of_wording = [range(wording, len(texts), wordings) for texts in (trait.bring_out, trait.suppress)]
    return of_wording[0][turn % len(of_wording[0])], of_wording[1][turn % len(of_wording[1])]


def trait_prompts(
    place: int, trait: Trait, catalog: Catalog, pairs: Iterable[int], seed: int, order: Sequence[int] | None = None
) -> list[Prompt]:
    """Some pairs of a trait's prompts, brought out before suppressed. order: which of the catalogue's questions are asked, in
    the order of the rotation; all of them, shuffled by the seed, unless given. A prompt's `instruction` counts those that bring
    out before those that suppress, its `index` is 2 · pair + side."""
    rotation = np.random.default_rng(seed).permutation(len(catalog.questions)) if order is None else np.asarray(order)
    prompts = []
    for pair in pairs:
        question = int(rotation[(place * STRIDE + pair) % len(rotation)])
        for side, (texts, text) in enumerate(
            zip((trait.bring_out, trait.suppress), paired_texts(trait, pair), strict=True)
        ):
            messages: tuple[Message, ...] = (
                {"role": "system", "content": texts[text]},
                {"role": "user", "content": catalog.questions[question].question},
            )
            prompts.append(Prompt(messages, trait.trait, text + side * len(trait.bring_out), question, 2 * pair + side))
    return prompts


def disjoint_wordings(texts: Ints) -> Ints:
    """Numbers of pairs' wordings `[pairs]`, of the texts of either side `[pairs, 2]`: pairs that share a text, by themselves or
    by way of further pairs, have one wording, numbered by the first text that brings out in it.

    >>> disjoint_wordings(np.array([[0, 4], [1, 5], [2, 4], [3, 6]])).tolist()
    [0, 1, 0, 3]
    """
    numbers, before = texts[:, 0].copy(), None
    while before is None or (numbers != before).any():
        before = numbers.copy()
        for side in texts.T:
            for text in np.unique(side):
                numbers[side == text] = numbers[side == text].min()
    return numbers


@dataclass(frozen=True)
class TraitReadings:
    """What was read of traits, each by its name. sides: `[pairs, 2, layers, hidden]`, brought out and suppressed, of the
    layers in `layers`; questions, wordings: `[pairs]`, places of questions in the catalogue, and which instructions a
    pair was read under; those of different wordings share no text."""

    layers: tuple[int, ...]
    sides: Mapping[str, Tensor] = field(repr=False)
    questions: Mapping[str, Ints] = field(repr=False)
    wordings: Mapping[str, Ints] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """The traits, in the order they were asked in."""
        return list(self.sides)

    def vectors(self) -> Tensor:
        """Mean of what was brought out less mean of what was suppressed, `[traits, layers, hidden]`."""
        return torch.stack([(pairs[:, 0] - pairs[:, 1]).mean(0) for pairs in self.sides.values()])

    def contrast(self, name: str, layer: int) -> Contrast:
        """A trait's pairs at one of the layers, for what `stats.contrasts` says of them."""
        pairs = self.sides[name][:, :, self.layers.index(layer)].double().numpy()
        return Contrast(pairs[:, 0] - pairs[:, 1], self.wordings[name])

    @classmethod
    def collected(
        cls, layers: Sequence[int], names: Sequence[str], rows: Iterable[tuple[str, int, int, int, Tensor]]
    ) -> TraitReadings:
        """From prompts that were read, in any order: trait, index, question, instruction, activation `[layers, hidden]`. A pair
        of which one side is missing is left out."""
        by_pair: dict[str, dict[int, dict[int, tuple[int, int, Tensor]]]] = {name: {} for name in names}
        for name, index, question, instruction, activation in rows:
            by_pair[name].setdefault(index // 2, {})[index % 2] = (question, instruction, activation)
        complete = {
            name: [two for _, two in sorted(pairs.items()) if len(two) == len(SIDES)]
            for name, pairs in by_pair.items()
            if pairs
        }
        sides = {
            n: torch.stack([torch.stack([two[0][2], two[1][2]]) for two in pairs]) for n, pairs in complete.items()
        }
        questions = {n: np.array([two[0][0] for two in pairs]) for n, pairs in complete.items()}
        texts = {n: np.array([[two[0][1], two[1][1]] for two in pairs]) for n, pairs in complete.items()}
        return cls(tuple(layers), sides, questions, {n: disjoint_wordings(both) for n, both in texts.items()})


def read_traits(
    engine: Engine,
    traits: Mapping[int, Trait],
    catalog: Catalog,
    *,
    questions: int = QUESTIONS,
    layers: Layers | None = None,
    seed: int = 0,
    order: Sequence[int] | None = None,
    watcher: Watcher | None = None,
) -> TraitReadings:
    """Reads traits, by their places in the catalogue, on an engine, and keeps what was read in memory. layers: all unless
    given; order: as in `trait_prompts`. Raises `UsageError`.

    >>> readings = read_traits(engine, chosen_traits("sarcastic,formal", catalog), catalog, layers=[space.layer])
    >>> readings.sides["formal"].shape  # pairs of prompts, both sides, layers, hidden
    torch.Size([8, 2, 1, 576])
    >>> 0 < readings.contrast("formal", space.layer).reliability() < 1
    True
    """
    check_questions(questions, catalog)
    read, watcher = list(range(engine.info.layers) if layers is None else layers), watcher or Watcher()
    prompts = [
        p for k, trait in traits.items() for p in trait_prompts(k, trait, catalog, range(questions), seed, order)
    ]
    rows = []
    for count, r in enumerate(engine.onsets(prompts, read=read), 1):
        assert r.activation is not None, "onsets are read at layers"
        rows.append(
            (r.prompt.role, r.prompt.index, r.prompt.question, r.prompt.instruction, r.activation.float().cpu())
        )
        watcher.progress(count, len(prompts))
    return TraitReadings.collected(read, [t.trait for t in traits.values()], rows)
