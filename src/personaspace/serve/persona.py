"""What a request's `persona` asks for, and what a reply's holds: interventions, projection, drift, nearest roles, alert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from personaspace.errors import SpaceError, UsageError
from personaspace.holding.monitor import AlertRule, Monitor, alert_rule
from personaspace.model.interventions import Intervention
from personaspace.report import words
from personaspace.serve.scheduler import TokenRead
from personaspace.serve.types import Persona
from personaspace.space import PersonaSpace
from personaspace.space.readings import REPLY


class BadRequest(Exception):
    """A request that cannot be met: the message, the field, OpenAI's code and the status."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True)
class Reader:
    """A space as the server uses it: names of models, interventions of a request, readings of a reply."""

    space: PersonaSpace
    name: str
    rule: AlertRule | None

    @classmethod
    def of(cls, space: PersonaSpace, name: str) -> Reader:
        """With the alert that the space was calibrated for, where it was."""
        return cls(space, name, alert_rule(space) if space.calibrated else None)

    @property
    def models(self) -> list[str]:
        """The model, and the model with each named cap."""
        return [self.name, *(f"{self.name}:{cap}" for cap in self.space.caps)]

    def interventions(self, model: str, persona: Persona) -> tuple[Intervention, ...]:
        """What a request asks for. Raises `BadRequest`."""
        if model not in self.models:
            raise BadRequest(
                f"The model '{model}' does not exist; there are {', '.join(self.models)}",
                "model",
                "model_not_found",
                404,
            )
        cap = model.removeprefix(self.name).removeprefix(":") or None
        if cap and persona.cap is not None and cap != persona.cap:
            raise BadRequest(f"model says cap '{cap}', persona.cap says '{persona.cap}'", "persona.cap")
        try:
            return self.space.interventions(cap or persona.cap, [(s.alpha, s.direction) for s in persona.steer])
        except (SpaceError, UsageError) as e:
            raise BadRequest(str(e), "persona") from None

    def turn(self, mean: Tensor | None, tokens: int, touched: int, history: Sequence[float]) -> dict[str, Any] | None:
        """A reply's `persona`; None for an empty one. history: the drifts of the turns before it."""
        if mean is None:
            return None
        reading = self.reading(mean, tokens)
        alert = self._alert([*history, reading["drift"]]) if reading["drift"] is not None else None
        return {**reading, "capped_tokens": touched, "alert": alert}

    def reading(self, mean: Tensor, tokens: int) -> dict[str, Any]:
        """Where a mean activation `[hidden]` over so many tokens lies."""
        location = self.space.read(mean)
        return {"layer": self.space.layer, **vars(location), "tokens_read": tokens, "place": self.place(mean.cpu())}

    def _alert(self, drifts: Sequence[float]) -> bool | None:
        if self.rule is None:
            return None
        watch = Monitor(self.space, self.rule)
        for drift in drifts:
            watch.look(drift)
        return watch.alert

    @cached_property
    def _map(self) -> tuple[Tensor, Tensor, Tensor]:
        """Role vectors less their mean, what replies lie about, and the first two components."""
        return self.space.centred()[0], self.space.centre(), self.space.components_at()[0][:2]

    def place(self, vector: Tensor) -> list[float]:
        """Where a reply's mean `[hidden]` lies on the first two components."""
        _, mean, components = self._map
        values: list[float] = ((vector.float() - mean) @ components.T).tolist()
        return values

    def describe(self, limits: dict[str, int], instructions: dict[str, str]) -> dict[str, Any]:
        """What the page draws the map, the band and the choices from."""
        space, summary = self.space, self.space.summary()
        replies = space.of(REPLY) if REPLY in space.readings else space
        centred, _, components = self._map
        places = (centred @ components.T).tolist()
        by_name = {r["name"]: r["projection"] for r in summary["roles"]}
        default = summary["default_projection"] or {"mean": None, "std": None}
        caps = {
            name: {
                "is": cap.get("is", name),
                "layers": cap["layers"],
                "floor": dict(zip(cap["layers"], cap["floors"], strict=True)).get(space.layer),
            }
            for name, cap in summary["caps"].items()
        }
        return {
            "model": self.name,
            "models": self.models,
            "layer": space.layer,
            "layers": summary["layers"],
            "default": {
                "mean": default["mean"],
                "std": default["std"],
                "place": self.place(replies.tensors["default_vector"][space.layer]),
            },
            "caps": caps,
            "alert": vars(self.rule) if self.rule else None,
            "roles": [
                {"name": n, "projection": by_name[n], "place": places[i], "instruction": instructions.get(n, "")}
                for i, n in enumerate(space.roles)
            ],
            "nearest": words.nearest(summary),
            "steer": space.can_steer,
            "limits": limits,
        }


def tokens_of(read: Sequence[TokenRead]) -> dict[str, Any]:
    """Tokens that were read, as a chunk's `persona` has them."""
    return {"tokens": [vars(t) for t in read]}


def is_finite(value: Any) -> bool:
    """Whether no number in a value of JSON is NaN or infinite: such a reading is an error, never a literal in an answer."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
