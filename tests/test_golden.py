"""Figures that other versions of torch, or of this package, came to: see `golden.py`."""

from __future__ import annotations

import json

import numpy as np
import pytest

import golden

TOLERANCE = {
    "readings": 1e-4,
    "logprobs": 1e-4,
    "map": 1e-3,
    "floors": 1e-3,
    "free reply": 0,
    "capped reply": 0,
    "capped projection": 1e-3,
    "planted": 1e-4,
    "planted layer": 0,
}


@pytest.fixture(scope="module")
def computed() -> dict:
    return golden.figures()


@pytest.mark.long
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_tiny_models_figures_are_those_in_the_file(computed, name):
    kept, now = json.loads(golden.FILE.read_text(encoding="utf-8"))[name], computed[name]
    pairs = [(f"{name}: {k}", kept[k], now[k]) for k in kept] if isinstance(kept, dict) else [(name, kept, now)]
    assert not isinstance(kept, dict) or kept.keys() == now.keys()
    for figure, before, after in pairs:
        before, after = np.array(before), np.array(after)
        assert before.shape == after.shape, figure
        scale = max(1.0, float(np.abs(before).max()))
        assert np.abs(before - after).max() <= TOLERANCE[name] * scale, figure


@pytest.mark.long
def test_the_cap_of_the_golden_reply_changes_it(computed):
    assert computed["free reply"] != computed["capped reply"]
