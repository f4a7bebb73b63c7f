"""What every experiment can be told, and what it asks of the engine; it knows nothing of any one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from personaspace.catalog import Catalog
from personaspace.engines import Engine
from personaspace.engines.prefix import unshared_length
from personaspace.engines.prompts import Sampling, assign, shards
from personaspace.mapping.pace import measure

SHARD = 128
"""Replies a part: what a killed experiment may have to do again, and as many as are asked for together."""


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
    """What an experiment asks of the engine: replies, and the tokens that they and their prompts may take together; new_tokens:
    those of them that are generated; turns: how many replies come one after the other."""

    replies: int
    tokens: int
    new_tokens: int
    turns: int = 1

    def seconds(self, engine: Engine, catalog: Catalog) -> float | None:
        """How long that takes here at most, from a second or two of the same loop (`mapping.pace`): the catalogue's prompts
        stand for the experiment's own. None where the engine cannot be timed."""
        (prompts,) = assign(catalog, [{role.role: 1 for role in catalog.roles}], 0)
        (sample, *_), read = shards(prompts, SHARD, 0), self.tokens - self.new_tokens
        sampling = Sampling(max_new_tokens=max(1, self.new_tokens // self.replies)) if self.replies else None
        together = min(SHARD, max(1, self.replies // self.turns))
        # What was said in earlier turns stands before a reply.
        before = read / self.replies if self.replies and self.turns > 1 else None
        pace = measure(engine, sample, sampling, together=together, before=before)
        if pace is None:
            return None
        # The pace is of tokens that neighbours don't share; these are all of them.
        ids = [engine.chat.prompt_ids(p.messages) for p in sample]
        return pace.seconds(read * unshared_length(ids) / sum(map(len, ids)), self.new_tokens)

    def __add__(self, addend: Cost) -> Cost:
        return Cost(
            self.replies + addend.replies,
            self.tokens + addend.tokens,
            self.new_tokens + addend.new_tokens,
            max(self.turns, addend.turns),
        )
