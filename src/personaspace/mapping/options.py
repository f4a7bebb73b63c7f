"""What a map is asked for, and what of it determines a run's responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from personaspace.catalog import Catalog
from personaspace.engines import Engine
from personaspace.engines.prompts import Design, Sampling
from personaspace.engines.thoughts import Part
from personaspace.errors import UsageError
from personaspace.files import check_address
from personaspace.model.sources import AND
from personaspace.stats.forecast import NAMES

PROMPTS_A_ROLE, MOST_DEFAULT_PROMPTS = 16, 250
REPLIES_A_ROLE, REPLIES_BESIDE_PROMPTS = 4, 2
"""How much is read unless told otherwise; beside prompts, which make the map, replies show what it means, and are fewer
(docs/decisions/0011-reading-before-the-first-word.md)."""


class MapOptions(BaseModel):
    """How to map. Only design, sampling, seed and span determine what is kept of responses; the rest may change as a run goes
    on.

    read: prompts before the first word, replies as in the study, or both. design: of replies, prompts: of prompts; what is
    not given of either is the run's, or a default. min_responses: a role needs that many kept ones; None is half of what it
    was asked. until: go on in rounds until the reliabilities are those (`axis:0.95,order:0.9,map:0.8`, or a number, the
    axis'), of prompts where they are read, or `budget` replies or `prompt_budget` prompts are spent (None: four times the
    design). keep: `all` activations, `sums` in their place, or `layers:A:B`, sums and the activations of those layers; other
    than `all`, it is the run's, and so is the judge. blocks: of questions, for sums and what is made of them; None is 20 for
    sums, else each question is one. shards: the address that they lie at, where not in the run's folder. span: what of replies
    is read, for a model that thinks before it answers; None is the run's, or the answer. traits: which traits' prompts are read
    as well (`all`, a number or names), trait_questions of each; both as in the run, and none or 8, unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    read: Literal["prompt", "reply", "both"] = "both"
    design: Design = Design()
    prompts: Design = Design()
    sampling: Sampling = Sampling()
    seed: int = 0
    layer: int | None = Field(None, ge=0)
    min_responses: int | None = Field(None, ge=1)
    until: dict[str, float] | None = None
    budget: int | None = Field(None, ge=1)
    prompt_budget: int | None = Field(None, ge=1)
    keep: str = "all"
    blocks: int | None = Field(None, ge=2)
    shards: str | None = None
    span: Part | None = None
    traits: str | None = None
    trait_questions: int | None = Field(None, ge=2)

    @field_validator("keep")
    @classmethod
    def _check_keep(cls, value: str) -> str:
        if not re.fullmatch(r"all|sums|layers:\d+:\d+", value):
            raise ValueError("expected all, sums, or layers:A:B, as layers:8:12")
        return value

    @field_validator("until", mode="before")
    @classmethod
    def _parse_until(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return {"axis": value} if isinstance(value, int | float) else value
        named = {}
        for part in value.split(","):
            name, colon, number = part.strip().rpartition(":")
            try:
                named[name if colon else "axis"] = float(number)
            except ValueError:
                raise ValueError("expected axis:0.95,order:0.9,map:0.8, some of them, or a number") from None
        return named

    @field_validator("shards", mode="before")
    @classmethod
    def _check_shards(cls, value: Any) -> Any:
        # Not a ValueError, whose message would show what was given.
        if isinstance(value, str):
            check_address(value)
        return value

    @field_validator("until")
    @classmethod
    def _check_until(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and (
            not value or not set(value) <= set(NAMES) or not all(0 < v < 1 for v in value.values())
        ):
            raise ValueError(
                "expected reliabilities between 0 and 1, of axis, order or map: axis:0.95,order:0.9,map:0.8"
            )
        return value

    def resolved(self, config: Mapping[str, Any] | None, catalog: Catalog) -> MapOptions:
        """With what was not given filled in: from an earlier call's configuration of replies, or by default."""
        replies_a_role = REPLIES_A_ROLE if self.read == "reply" else REPLIES_BESIDE_PROMPTS
        of_replies, sampling = {"per_role": replies_a_role}, {}
        if config:
            of_replies, sampling = config["design"], config["sampling"]
        design = Design(**{**of_replies, **self.design.model_dump(exclude_unset=True)})
        prompts = {"per_role": PROMPTS_A_ROLE, **self.prompts.model_dump(exclude_unset=True)}
        if not prompts.get("default_responses"):
            prompts["default_responses"] = min(
                MOST_DEFAULT_PROMPTS, max(2, -(-prompts["per_role"] * len(catalog.roles) // 2))
            )
        sampling = {**sampling, **self.sampling.model_dump(exclude_unset=True)}
        filled_in = {
            "design": design,
            "prompts": Design(**prompts),
            "sampling": Sampling(**sampling),
            "span": self.span or (config or {}).get("span", "answer"),
        }
        return self.model_copy(update=filled_in)


def configuration(engine: Engine, catalog: Catalog, options: MapOptions) -> dict[str, Any]:
    """What determines a run's responses."""
    model = engine.info
    # Where thinking is off, a run is what it was before anybody asked.
    rule = model.notes.get("thinking")
    thinking = {"thinking": rule} if rule not in (None, "off", "always") else {}
    identity = {"id": model.id, "fingerprint": model.fingerprint, "dtype": model.dtype, "template": model.template}
    return {
        "model": identity | thinking,
        "catalog": {
            "fingerprint": catalog.fingerprint,
            "roles": [r.role for r in catalog.roles],
            "questions": len(catalog.questions),
        },
        "design": options.design.model_dump(),
        "sampling": options.sampling.model_dump(),
        "seed": options.seed,
        # Where answers are read, a run is what it was before thoughts could be.
        **({"span": options.span} if options.span not in (None, "answer") else {}),
    }


def check_span(options: MapOptions, engine: Engine) -> None:
    """Raises `UsageError` where there will be no thoughts to read, or to leave out."""
    rule = engine.info.notes.get("thinking")
    if options.read == "prompt":
        why = "it says what of replies is read, and read=prompt asks for none"
    elif rule is None:
        why = f"{engine.info.id} knows no thoughts: all of its replies is answer; leave span out"
    elif rule == "off":
        why = f"{engine.info.id} answers without thinking here; turn thinking on, or leave span out"
    else:
        return
    raise UsageError(f"span={options.span}: {why}")


def named(catalog: Catalog, model: str) -> Catalog:
    """The catalogue with the model's own name in the default prompts."""
    base = model.partition(AND)[0]  # an adapter's folder is no name of a model
    name = "SmolLM2" if base == "smollm2" else Path(base).name.partition(":")[0].removesuffix(".gguf")
    defaults = tuple(t.replace("{model}", name) if t else t for t in catalog.defaults)
    return replace(catalog, defaults=defaults)
