"""What an experiment is: options, a cost, and a way from trials to a result; it knows nothing of any one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from personaspace.catalog import Catalog
from personaspace.errors import UsageError, invalid_reason
from personaspace.experiments.kit.options import Cost, Options
from personaspace.experiments.kit.results import Result, write_result
from personaspace.experiments.kit.trials import Trials


@dataclass(frozen=True)
class Experiment:
    """The declaration that a folder's `run` ends with; its help is the first paragraph of `run`'s docstring (see `registry`).

    name: the command's. published: options of the study's own size, or the nearest to it that is known. cost: from options and
    catalogue. run: does it, within the open folder of the trials. more: what the example of its help says besides.

    >>> from personaspace.experiments.kit.options import option
    >>> class Few(Options):
    ...     questions: int = option(2, "Questions asked.")
    >>> experiment = Experiment("few", Few(questions=240), lambda options, catalog: Cost(options.questions, 0, 0), run=...)
    >>> experiment.options(questions=3).questions
    3
    """

    name: str
    published: Options
    cost: Callable[[Any, Catalog], Cost]
    run: Callable[[Trials[Any]], Result]
    more: str = ""

    @property
    def options(self) -> type[Options]:
        """What it can be told; the defaults are the small setting."""
        return type(self.published)

    @property
    def example(self) -> str:
        """A call of it, for its help."""
        return f"personaspace experiment {self.name} smollm2 --out runs/{self.name} {self.more}".strip()

    def read_options(self, overrides: Mapping[str, Any], published: bool = False) -> Options:
        """The overrides over the small or the published setting. Raises `UsageError`."""
        start = self.published.model_dump() if published else {}
        try:
            return self.options.model_validate({**start, **overrides})
        except ValidationError as e:
            first = e.errors()[0]
            name = str(first["loc"][0]).replace("_", "-")
            raise UsageError(f"--{name} {first['input']}: {invalid_reason(first)}") from None

    def conduct(self, trials: Trials[Any]) -> Result:
        """Runs it in the trials' folder, or goes on with what is there, and writes `results.parquet`, `results.json` and
        `report.html`. Raises `PersonaSpaceError`."""
        with trials.open(self.cost(trials.options, trials.catalog).replies):
            result = self.run(trials)
            write_result(trials, result)
        return result
