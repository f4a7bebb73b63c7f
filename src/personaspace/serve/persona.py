"""What a request's `persona` asks for, and what a reply's holds: interventions, projection, drift, nearest roles, alert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from personaspace.errors import SpaceError, UsageError
from personaspace.holding.monitor import AlertRule
from personaspace.model.interventions import Intervention
from personaspace.report import words
from personaspace.serve.refusals import BadRequest
from personaspace.serve.scheduler import TokenRead
from personaspace.serve.settings import WatchSettings
from personaspace.serve.types import Persona
from personaspace.serve.watch import RECOMMENDED, Act, Watch, WatchedReply, waits_for_alert
from personaspace.space import PersonaSpace
from personaspace.space.directions import AXIS
from personaspace.space.holds import ON_ALERT
from personaspace.space.readings import REPLY


@dataclass(frozen=True)
class Reader:
    """A space as the server uses it: names of models, interventions of a request, readings of a reply."""

    space: PersonaSpace
    name: str
    watch: Watch

    @classmethod
    def of(cls, space: PersonaSpace, name: str, settings: WatchSettings | None = None) -> Reader:
        """With the alert that the space was calibrated for, where it was. Raises as `Watch.of`."""
        return cls(space, name, Watch.of(space, settings or WatchSettings()))

    @property
    def rule(self) -> AlertRule | None:
        """When the axis' alert stands."""
        return next((alert.rule for alert in self.watch.alerts if alert.name == AXIS), None)

    @property
    def models(self) -> list[str]:
        """The model, and the model with each named cap."""
        return [self.name, *(f"{self.name}:{cap}" for cap in self.space.caps)]

    def treatment(self, model: str, persona: Persona) -> tuple[tuple[Intervention, ...], Act | None]:
        """What is done to a request: what it asks for, and what is done since an alert was raised before it. Raises
        `BadRequest`."""
        if model not in self.models:
            raise BadRequest(
                f"The model '{model}' does not exist; there are {', '.join(self.models)}",
                "model",
                "model_not_found",
                404,
            )
        cap = self._cap(model, persona)
        self.watch.check(persona, cap)
        steer = [(s.alpha, s.direction) for s in persona.steer]
        waits, act = waits_for_alert(self.space, cap), self.watch.act(persona, cap)
        try:
            if waits and cap is not None:
                if not self.watch.alerts:
                    raise BadRequest(f"{cap}: this server has no rule for an alert to wait for", "persona.cap")
                cap = cap.removesuffix(ON_ALERT)
                self.space.hold(cap)  # a name that is none is refused before anything drifts
                cap = cap if act == "cap" else None
            elif act == "cap":
                cap = RECOMMENDED
            return self.space.interventions(cap, steer), act
        except (SpaceError, UsageError) as e:
            raise BadRequest(str(e), "persona") from None

    def _cap(self, model: str, persona: Persona) -> str | None:
        """The cap that a request names. Raises `BadRequest` where it names two."""
        cap = model.removeprefix(self.name).removeprefix(":") or None
        if cap and persona.cap is not None and cap != persona.cap:
            raise BadRequest(f"model says cap '{cap}', persona.cap says '{persona.cap}'", "persona.cap")
        return cap or persona.cap

    def turn(
        self, mean: Tensor | None, tokens: int, touched: int, persona: Persona | None = None, act: Act | None = None
    ) -> WatchedReply | None:
        """A whole reply as it lies, of a request with such a `persona`, to which so was acted; None for an empty one."""
        if mean is None:
            return None
        reading, persona = self.reading(mean, tokens), persona or Persona()
        started = self.watch.started(mean)
        along = started if persona.read is None else self.watch.along(mean, persona.read)
        shifts = {name: place.shift for name, place in started.items() if place.shift is not None}
        if reading["drift"] is not None:
            shifts[AXIS] = -reading["drift"]
        standing, begun = self.watch.judged(shifts, persona)
        persona_told = {**reading, "capped_tokens": touched, "alert": standing.get(AXIS)}
        if act:
            persona_told["acted"] = act
        if along:
            persona_told["along"] = {name: vars(place) for name, place in along.items()}
        if any(alert.name != AXIS for alert in self.watch.alerts):
            persona_told["alerts"] = standing
        return WatchedReply(persona_told, started, begun, {name: shifts[name] for name in begun})

    def reading(self, mean: Tensor, tokens: int) -> dict[str, Any]:
        """Where a mean activation `[hidden]` over so many tokens lies."""
        location = self.space.read(mean)
        return {"layer": self.space.layer, **vars(location), "tokens_read": tokens, "place": self.place(mean.cpu())}

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
        centred, centre, components = self._map
        places = (centred @ components.T).tolist()
        above_mean = (centred @ space.axis_at()).tolist()
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
            # Roles are of the space's own reading, whose zero may be another than replies' have: each is told from the mean of
            # its own reading, and `mean_role` is where that of replies lies.
            "reading": space.reading,
            "mean_role": float(centre @ space.axis_at()),
            "alert": vars(self.rule) if self.rule else None,
            "roles": [
                {
                    "name": n,
                    "projection": by_name[n],
                    "above_mean": above_mean[i],
                    "place": places[i],
                    "instruction": instructions.get(n, ""),
                }
                for i, n in enumerate(space.roles)
            ],
            "nearest": words.nearest(summary),
            "steer": space.can_steer,
            "limits": limits,
            **self.watch.describe(),
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
