"""Reading and intervening in the compiled pass: the same numbers, and no graph but the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_numbers import GREEDY, alike, direction, in_order, load_reference, prompts, replayed
from torch._dynamo.utils import counters

from personaspace.engines.prompts import Prompt
from personaspace.model.interventions import Add, Cap


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2"])
def test_a_compiled_pass_reads_and_holds_without_another_graph(
    family: str, folders: Callable[[str], str], opened: Callable[..., Any]
) -> None:
    reference = load_reference(folders(family))
    engine = opened(folders(family), enforce_eager=False)
    assert "NONE" not in engine.info.notes["compiled"]
    layers = range(engine.info.layers)
    u = direction(engine.info.hidden)
    plain = in_order(engine.respond(prompts(), GREEDY, read=layers))
    graphs = counters["stats"]["unique_graphs"]
    for r in plain:
        assert alike(r.activation, replayed(reference, r)) >= 0.9999
    floor = max(float(r.activation[1] @ u / u.norm()) for r in plain) + 1.0
    ways = [(Cap(u, (1, 2), floor=floor),), (Add(u, 0, 2.0, relative=False, where="generated"),), ()]
    asked = [Prompt(p.messages, question=p.question, interventions=ways[k % 3]) for k, p in enumerate(prompts())]
    for k, r in enumerate(in_order(engine.respond(asked, GREEDY, read=layers))):
        assert alike(r.activation, replayed(reference, r, ways[k % 3])) >= 0.9999
        if not ways[k % 3]:
            assert r.token_ids == plain[k].token_ids
            assert torch.allclose(r.activation, plain[k].activation, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs
