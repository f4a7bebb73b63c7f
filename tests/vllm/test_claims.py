"""The claims, on the embedded model: the numbers of engine `transformers`, and the cap that comes with its space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from test_numbers import alike, in_order, load_reference, replayed

from personaspace.engines.prompts import Prompt, Sampling
from personaspace.space import PersonaSpace

ROLES = ["You are a ghost.", ""]
ASKED = ["Who are you?", "How do I boil an egg?", "What do you fear?"]


def prompts() -> list[Prompt]:
    turns = [
        [*([{"role": "system", "content": r}] if r else []), {"role": "user", "content": q}]
        for r in ROLES
        for q in ASKED
    ]
    return [Prompt(tuple(messages), question=k) for k, messages in enumerate(turns)]


def test_smollm2_reads_and_holds_as_in_transformers(opened: Callable[..., Any]) -> None:
    reference = load_reference("smollm2")
    engine = opened("smollm2", max_model_len=512, max_num_seqs=12, kv_cache_memory_bytes=512 << 20)
    assert engine.info.fingerprint == reference.info.fingerprint
    layers, sampling = range(engine.info.layers), Sampling(temperature=0, max_new_tokens=16)
    cap = PersonaSpace.load("smollm2").cap("capped")
    for given in ((), (cap,)):
        ours = in_order(engine.respond(prompts(), sampling, read=layers, interventions=given))
        theirs = in_order(reference.respond(prompts(), sampling, read=layers, interventions=given))
        assert sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True)) >= len(ours) - 1
        for a in ours:
            assert alike(a.activation, replayed(reference, a, given)) >= 0.9999
            for layer in cap.layers if given else ():
                unit, floor, _ = cap.at(layer)
                assert float(a.activation[layer] @ unit) >= floor - 1e-3 * abs(floor) - 1e-2
        assert all(a.touched > 0 for a in ours) == bool(given)
    assert torch.isfinite(ours[0].activation).all()
