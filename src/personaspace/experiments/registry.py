"""Which experiments there are, by name. A new one is a folder whose `run` has `EXPERIMENT`, and a line here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from personaspace.errors import UsageError

if TYPE_CHECKING:
    from personaspace.experiments.kit.experiment import Experiment


@dataclass(frozen=True)
class ExperimentEntry:
    """folder: whose `run` is read when the experiment is asked for. summary: a line of help."""

    folder: str
    summary: str


EXPERIMENTS = {
    "susceptibility": ExperimentEntry(
        "susceptibility", "Who the model says it is while it is steered along the axis, and capped."
    ),
    "jailbreak": ExperimentEntry(
        "jailbreak", "Whether steering and capping hold the model against persona-based jailbreaks."
    ),
    "drift": ExperimentEntry(
        "drift",
        "How far conversations drift along the axis, by what they are about, capped and not; and which messages move them.",
    ),
    "base-model": ExperimentEntry("base_model", "Whether the axis is there in the base model, before post-training."),
    "traits": ExperimentEntry("traits", "Which of 240 personality traits the axis carries."),
    "capability": ExperimentEntry(
        "capability", "What steering and capping cost: perplexity, small tasks, and lm-eval's tasks through a server."
    ),
    "case-study": ExperimentEntry(
        "case_study", "Conversations that drifted, as they were, and again with the model plain and capped."
    ),
    "manner": ExperimentEntry(
        "manner", "Whether the axis tells who speaks, or only how: roles crossed with manners of writing."
    ),
}
"""In the order of the paper, then those that it lacks."""


def find(name: str) -> Experiment:
    """The experiment of that name. Raises `UsageError` with the names there are.

    >>> experiment = find("susceptibility")
    >>> options = experiment.options(roles=10)
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"experiment {name}: expected one of {', '.join(EXPERIMENTS)}")
    experiment: Experiment = import_module(f"personaspace.experiments.{EXPERIMENTS[name].folder}.run").EXPERIMENT
    return experiment
