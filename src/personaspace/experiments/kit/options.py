"""What every experiment can be told, and what it asks of the engine; it knows nothing of any one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from personaspace.engines import Engine
from personaspace.mapping.plan import seconds_per_token


def _split(value: Any) -> Any:
    return tuple(p for part in value.split(",") if (p := part.strip())) if isinstance(value, str) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_split)]
"""Several numbers; on the command line separated by commas."""
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Several names; on the command line separated by commas."""


def option(default: Any, description: str, *, later: bool = False, **bounds: Any) -> Any:
    """A field of `Options`. description: its help on the command line. later: it may change when an experiment goes on, since
    no reply depends on it. bounds: as pydantic has them (`ge=1`)."""
    return Field(default, description=description, json_schema_extra={"later": True} if later else None, **bounds)


class Options(BaseModel):
    """What every experiment can be told; each adds its own by `option`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = option(0, "The same seed gives the same result.")

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

    def __add__(self, addend: Cost) -> Cost:
        return Cost(self.replies + addend.replies, self.tokens + addend.tokens)
