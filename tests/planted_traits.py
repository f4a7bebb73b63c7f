"""An engine whose prompts lie where roles and traits are put, so that what a map should say of traits is known beforehand."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from personaspace.catalog import Catalog, Trait
from personaspace.engines import Response
from personaspace.engines.protocol import ONSET
from planted import HIDDEN, PlantedEngine


class PlantedTraits(PlantedEngine):
    """cosines: of each trait's direction with the axis, the first coordinate, on which the default lies 6 above the roles;
    reach: how far its two sides lie apart; wordings: how far an instruction leads off by itself; noise: of each prompt. Every
    question moves all of its prompts by 5 in a direction of its own."""

    def __init__(
        self,
        catalog: Catalog,
        traits: Sequence[Trait],
        cosines: Mapping[str, float],
        *,
        reach: float = 6.0,
        wordings: float = 0.0,
        noise: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(lambda messages, rng: 0.0)
        self.noise, self.seed = noise, seed
        rng = np.random.default_rng(seed)
        self.places: dict[str, np.ndarray] = {}
        off_axis = rng.normal(size=(len(catalog.roles), HIDDEN - 1))
        # The mean role lies straight below the default, so that the axis is the first coordinate.
        for role, off in zip(catalog.roles, off_axis - off_axis.mean(0), strict=True):
            self.places |= dict.fromkeys(role.instructions, np.concatenate([[-3.0], off]))
        self.vectors: dict[str, np.ndarray] = {}
        for trait in traits:
            off = rng.normal(size=HIDDEN - 1)
            cosine = cosines.get(trait.trait, 0.0)
            off *= (1 - cosine**2) ** 0.5 / np.linalg.norm(off)
            self.vectors[trait.trait] = reach * np.concatenate([[cosine], off])
            for sign, texts in ((0.5, trait.bring_out), (-0.5, trait.suppress)):
                for text in texts:
                    own = wordings * rng.normal(size=HIDDEN) / HIDDEN**0.5
                    self.places[text] = sign * self.vectors[trait.trait] + own

    def onsets(self, prompts, *, read, interventions=()):
        for p in prompts:
            self.asked += 1
            system = p.messages[0]["content"] if p.messages[0]["role"] == "system" else ""
            place = self.places.get(system, np.concatenate([[3.0], np.zeros(HIDDEN - 1)]))
            question = np.random.default_rng(zlib.crc32(p.messages[-1]["content"].encode())).normal(size=HIDDEN)
            own = zlib.crc32("\n".join(m["content"] for m in p.messages).encode())
            error = self.noise * np.random.default_rng([own, self.seed]).normal(size=HIDDEN)
            at = place + 5 * question / np.linalg.norm(question) + error
            activation = torch.from_numpy(at).float().expand(len(read), -1).clone()
            yield Response(p, "", (0,), ONSET, activation, torch.linalg.vector_norm(activation, dim=-1))
