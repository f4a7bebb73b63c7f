"""Which experiments there are, by name. A new one is a folder whose `run` has `EXPERIMENT`, and a line here."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from personaspace.errors import UsageError

if TYPE_CHECKING:
    from personaspace.experiments.kit.experiment import Experiment


@dataclass(frozen=True)
class ExperimentEntry:
    """folder: whose `run` is imported when the experiment is asked for."""

    folder: str

    @property
    def summary(self) -> str:
        """A line of help: the first paragraph of `run`'s docstring, read without what it imports."""
        source = (Path(__file__).parent / self.folder / "run.py").read_text(encoding="utf-8")
        return " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())


_FOLDERS = (
    "susceptibility",
    "jailbreak",
    "drift",
    "base_model",
    "traits",
    "capability",
    "case_study",
    "manner",
    "holds",
)
EXPERIMENTS = {folder.replace("_", "-"): ExperimentEntry(folder) for folder in _FOLDERS}
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
