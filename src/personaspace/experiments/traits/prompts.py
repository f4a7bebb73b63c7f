"""Whether traits' vectors from replies are those from prompts: read here with questions that the replies were not asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from personaspace.catalog import Trait
from personaspace.engines.prompts import Prompt
from personaspace.experiments.kit.trials import Trials
from personaspace.files import load_tensors, write_whole
from personaspace.mapping.traits import QUESTIONS, TraitReadings, trait_prompts
from personaspace.stats.contrasts import Contrast, agreement
from personaspace.stats.intervals import Estimate

FILE = "trait-prompts.safetensors"


def read(
    trials: Trials[Any], traits: Sequence[Trait], asked: Mapping[str, Sequence[str]], layer: int
) -> TraitReadings | None:
    """Traits' prompts at a layer, of questions that the replies were not asked (asked: each trait's); kept in the folder. None
    where no two questions are left."""
    prompts: list[Prompt] = []
    for trait in traits:
        fresh = [k for k, q in enumerate(trials.catalog.questions) if q.question not in asked[trait.trait]]
        if len(fresh) < 2:
            return None
        order = np.random.default_rng([trials.options.seed, len(prompts)]).permutation(fresh).tolist()
        pairs = range(min(QUESTIONS, len(fresh)))
        prompts += trait_prompts(0, trait, trials.catalog, pairs, trials.options.seed, order)
    key = hashlib.sha256(json.dumps([[list(p.messages) for p in prompts], layer]).encode()).hexdigest()
    path = trials.folder / FILE
    if path.is_file() and load_tensors(path)[1].get("asked") == key:
        activations = load_tensors(path)[0]["activations"]
    else:
        place = {(p.role, p.index): k for k, p in enumerate(prompts)}
        activations = torch.zeros(len(prompts), trials.engine.info.hidden)
        for r in trials.engine.onsets(prompts, read=[layer]):
            assert r.activation is not None, "onsets are read at layers"
            activations[place[r.prompt.role, r.prompt.index]] = r.activation[0].float().cpu()
        write_whole(path, save({"activations": activations}, {"asked": key}))
    rows = [(p.role, p.index, p.question, p.instruction, a[None]) for p, a in zip(prompts, activations, strict=True)]
    return TraitReadings.collected([layer], [t.trait for t in traits], rows)


def agreements(
    of_replies: Mapping[str, Contrast], readings: TraitReadings, unit: np.ndarray, seed: int
) -> dict[str, Estimate]:
    """How far prompts and replies agree, noise taken out of both: on the traits' vectors, and on where these lie on the axis,
    the mean trait taken off."""
    names = list(of_replies)
    replies, prompts = [of_replies[n] for n in names], [readings.contrast(n, readings.layers[0]) for n in names]

    def on_axis(contrasts: Sequence[Contrast]) -> list[Contrast]:
        mean = np.mean([c.vector @ unit for c in contrasts])
        return [Contrast((c.differences @ unit - mean)[:, None], c.wording) for c in contrasts]

    return {
        "vectors": agreement(replies, prompts, seed),
        "on_the_axis": agreement(on_axis(replies), on_axis(prompts), seed),
    }
