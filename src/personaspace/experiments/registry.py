"""Which experiments there are, by name."""

from __future__ import annotations

from importlib import import_module

from personaspace.errors import UsageError
from personaspace.experiments.kit.experiment import Experiment

MODULES = {
    "susceptibility": "susceptibility",
    "jailbreak": "jailbreak",
    "drift": "drift",
    "base-model": "base_model",
    "traits": "traits",
    "capability": "capability",
    "case-study": "case_study",
    "manner": "manner",
}
"""Name → folder, in the order of the paper, then those that it lacks. Its `run` is read when its experiment is asked for."""


def find(name: str) -> Experiment:
    """The experiment of that name. Raises `UsageError` with the names there are."""
    if name not in MODULES:
        raise UsageError(f"experiment {name}: expected one of {', '.join(MODULES)}")
    found: Experiment = import_module(f"personaspace.experiments.{MODULES[name]}.run").EXPERIMENT
    return found
