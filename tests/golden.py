"""What a tiny model reads, what a map of it says and how it is held, as numbers in a file: another version of torch or of this
package should come to the same. Weights and activations are numpy's, whose draws don't change; replies are greedy.

`python tests/golden.py` writes the file anew; what has changed is a matter for the changelog.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import personaspace as ps
from conftest import make_model, make_tokenizer, write_catalog
from in_memory import planted_responses
from personaspace.api import options_of
from personaspace.catalog import load_catalog
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.holding import calibrate
from personaspace.mapping import estimate
from personaspace.mapping.mapper import Mapper
from personaspace.runs import Run

FILE = Path(__file__).parent / "data" / "golden.json"
CAP = "default-p25@1:3"
GREEDY = Sampling(temperature=0, max_new_tokens=12)
MODEL = {"id": "planted", "fingerprint": "planted", "layers": 4, "hidden": 10}
CONVERSATION = (
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A pilot, and a whale."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "I swim."},
)


def numpys_engine() -> TransformersEngine:
    """The tiny engine of the other tests with weights that numpy draws."""
    model, rng = make_model("llama"), np.random.default_rng(0)
    for name, weight in model.named_parameters():
        drawn = rng.normal(size=weight.shape)
        weight.data.copy_(torch.from_numpy(1 + 0.1 * drawn if "norm" in name else 0.2 * drawn))
    return TransformersEngine(model, make_tokenizer(), id="tiny", rows=16)


def figures() -> dict[str, Any]:
    """Everything that is compared."""
    engine = numpys_engine()
    (span,) = [engine.chat.spans(CONVERSATION, "answer")[0]]
    (turns,) = engine.replay([span], read=range(3), logprobs=True)
    with tempfile.TemporaryDirectory() as folder:
        options = options_of(
            read="reply",
            design={"per_role": 8, "default_responses": 60},
            sampling={"temperature": 0.0, "max_new_tokens": 6},
            layer=1,
        )
        catalog = load_catalog(write_catalog(Path(folder)))
        mapped = Mapper(engine, catalog, Path(folder) / "run", options).map(None)
        sample = calibrate.draw_sample(Run(Path(folder) / "run"), default=24, roles=24, held_out=24)
        space = calibrate.calibrate(engine, mapped, sample, range(1, 3))
    ask = Prompt(({"role": "user", "content": "What is a thing to you?"},), seed=0)
    held = space.cap(CAP)
    # Far above where replies lie, so that there is something to hold.
    raised = type(held)(held.vector, held.layers, floor=tuple(floor + 3 for floor in held.floor))
    (free,), (capped,) = (
        engine.respond([ask], GREEDY, read=[1], interventions=interventions) for interventions in ([], [raised])
    )
    planted = planted_responses(0)
    names = [f"role{k}" for k in range(1, 8)]
    included = estimate.included_responses(planted, names, dict.fromkeys(["default", *names], 8), None)
    from_planted = estimate.estimate(included, None, 3, {"model": MODEL})
    return {
        "readings": [turn.activation.tolist() for turn in turns],
        "logprobs": [turn.logprob for turn in turns],
        "map": _of_space(space),
        "floors": space.caps[CAP]["floors"],
        "free reply": list(free.token_ids),
        "capped reply": list(capped.token_ids),
        "capped projection": float(space.project(capped.activation[0])),
        "planted": _of_space(from_planted),
        "planted layer": from_planted.layer,
    }


def _of_space(space: ps.PersonaSpace) -> dict[str, Any]:
    names = ("axis", "axis_split_half", "order_split_half", "map_split_half", "separation", "default_moments")
    return {name: space.tensors[name].nan_to_num(-9).tolist() for name in names} | {
        "places": (space.role_vectors_at() @ space.axis_at()).tolist(),
        "role_reliability": space.tensors["role_reliability"].nan_to_num(-9).tolist(),
        "axis_pc1_interval": space.meta["axis_pc1_interval"],
    }


def rounded(value: Any) -> Any:
    """Seven digits of each number."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


if __name__ == "__main__":
    FILE.write_text(json.dumps(rounded(figures())) + "\n", encoding="utf-8")
