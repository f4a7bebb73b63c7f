"""Spaces of made-up characters: mapped from an engine whose roles lie where they are put, so that how sure a map should be of
them is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import personaspace as ps
from personaspace.catalog import DEFAULT, Catalog, load_catalog
from personaspace.space.readings import PROMPT, joined
from planted import HIDDEN, LAYER, LAYERS, NORM, PlantedEngine

WIDTH = 6
"""Directions in which roles differ."""


class Characters(PlantedEngine):
    """signal: how far roles lie apart in each of six directions, where a reply's noise is 1; nothing at layer 0, all of it at
    the last."""

    def __init__(self, catalog: Catalog, signal: float) -> None:
        super().__init__(lambda messages, rng: 0.0, lambda at, messages: "I am who I am, and <b>it</b> & I know it.")
        self.role_of = {text: r.role for r in catalog.roles for text in r.instructions}
        rng = np.random.default_rng(3)
        places = {r.role: torch.from_numpy(rng.normal(size=WIDTH)).float() for r in catalog.roles}
        places[DEFAULT] = 3 * torch.eye(WIDTH)[0]
        self.places = {role: signal * place for role, place in places.items()}

    def respond(self, prompts, sampling, *, read=None, interventions=(), before=False) -> Iterator:
        layers = list(read or ())
        for r in super().respond(prompts, sampling, read=read):
            system = r.prompt.messages[0]["content"] if r.prompt.messages[0]["role"] == "system" else ""
            place = self.places[self.role_of.get(system, DEFAULT)]
            rng = np.random.default_rng((r.prompt.seed or 0) + 1)
            noise = torch.from_numpy(rng.normal(size=(len(layers), HIDDEN))).float()
            grows = torch.tensor([layer / (LAYERS - 1) for layer in layers])
            noise[:, :WIDTH] += grows[:, None] * place
            yield replace(r, activation=noise, norms=torch.full((len(layers),), NORM))


def characters(folder: Path, signal: float, roles: int = 24, per_role: int = 6, questions: int = 24) -> ps.PersonaSpace:
    """The space of so many roles of the catalogue, each asked so often."""
    catalog = load_catalog(None).select(str(roles), questions)
    options = {"per_role": per_role, "default_responses": per_role * roles // 2, "max_new_tokens": 8, "layer": LAYER}
    return ps.map(
        Characters(catalog, signal),
        folder,
        read="reply",
        roles=str(roles),
        questions=questions,
        judge="none",
        **options,
    )


def two_readings(prompts: ps.PersonaSpace, replies: ps.PersonaSpace) -> ps.PersonaSpace:
    """Both as one space, the first as what it holds of prompts."""
    return ps.PersonaSpace(
        *joined(
            ({**prompts.meta, "reading": PROMPT}, prompts.tensors),
            ({**replies.meta, "reading": "reply"}, replies.tensors),
        )
    )
