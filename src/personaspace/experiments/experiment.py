"""What an experiment is: options, a cost, and a way from trials to a result; it knows nothing of any one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from personaspace.catalog import Catalog
from personaspace.engines import Engine
from personaspace.plan import seconds_per_token

if TYPE_CHECKING:
    from personaspace.experiments.results import Result
    from personaspace.experiments.trials import Trials


def _split(value: Any) -> Any:
    return tuple(p for part in value.split(",") if (p := part.strip())) if isinstance(value, str) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_split)]
"""Several numbers; on the command line separated by commas."""
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Several names; on the command line separated by commas."""


class Options(BaseModel):
    """What every experiment can be told; each adds its own. A field's description is its help text on the command line; what
    is marked `later=True` may change when an experiment goes on, since no reply depends on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = Field(0, description="The same seed gives the same result.")

    def determining(self) -> dict[str, Any]:
        """The options that replies depend on, as plain values."""
        later = {n for n, f in type(self).model_fields.items() if (f.json_schema_extra or {}) == {"later": True}}
        return self.model_dump(mode="json", exclude=later)


@dataclass(frozen=True)
class Cost:
    """What an experiment asks of the engine: replies, and the tokens that they and their prompts may take together."""

    replies: int
    tokens: int

    def seconds(self, engine: Engine) -> float:
        """How long that would take here, estimated from the model's size and a matrix product timed on its device."""
        return self.tokens * seconds_per_token(engine)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.replies + other.replies, self.tokens + other.tokens)


@dataclass(frozen=True)
class Experiment:
    """name: the command's. summary: a line of help. published: options of the study's own size, or the nearest to it that is
    known. cost: from options and catalogue. run: does it, within the open folder of the trials."""

    name: str
    summary: str
    options: type[Options]
    published: Options
    cost: Callable[[Any, Catalog], Cost]
    run: Callable[[Trials[Any]], Result]
    example: str = ""

    def conduct(self, trials: Trials[Any]) -> Result:
        """Runs it in the trials' folder, or goes on with what is there, and writes `results.parquet`, `results.json` and
        `report.html`. Raises `PersonaSpaceError`."""
        from personaspace.experiments.results import write_result

        with trials.open(self.cost(trials.options, trials.catalog).replies):
            result = self.run(trials)
            write_result(trials, result)
        return result
