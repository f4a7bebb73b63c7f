"""What is done to a model that is asked: nothing, steering, a cap, or a control: as long a step along a random direction.

It knows nothing of engines; `trials` applies conditions, and measures how long a cap's steps are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from personaspace.holding.controls import BesideControls, between_halves, displaced, random_direction
from personaspace.model.interventions import Add, Intervention
from personaspace.space import PersonaSpace
from personaspace.space.holds import ON_ALERT

SHUFFLED_AXIS = -1
"""The number of the direction between two halves of the roles, drawn by lot (`controls.between_halves`)."""


@dataclass(frozen=True)
class Condition:
    """What is done to the model: nothing, steering along the axis by alpha (in units of the layer's residual norm), a cap.

    cap: or a way of holding by one, as `space.holds` has them; with `ON_ALERT` behind it, it holds from the turn on after the
    first alert, and a conversation's first turn never (`during`). control: the number of a random direction along which the
    model is displaced as far instead, or `SHUFFLED_AXIS` (see `controls`).
    """

    name: str
    alpha: float = 0.0
    cap: str | None = None
    control: int | None = None

    def interventions(
        self, space: PersonaSpace, displacements: Mapping[str, Sequence[float]] | None = None
    ) -> tuple[Intervention, ...]:
        """Steering first, then the cap, unless it waits for an alert.

        displacements: cap → how far it moves a token at each of its layers, which the control
        of a cap needs (`Trials.displacement` measures it). Raises `SpaceError` for a cap that the space does not have."""
        interventions = space.interventions(None if self.waits else self.cap or None, self.alpha)
        number = self.control
        if number is None:
            return interventions

        def along(space: PersonaSpace, layer: int) -> Tensor:
            return between_halves(space, layer) if number == SHUFFLED_AXIS else random_direction(space, layer, number)

        random_steps: list[Intervention] = []
        for step in interventions:
            if isinstance(step, Add):
                random_steps.append(replace(step, vector=along(space, step.layer)))
            else:
                lengths = (displacements or {})[self.cap or ""]
                random_steps += displaced(space, step.layers_touched(), lengths, along, step)
        return tuple(random_steps)

    @property
    def waits(self) -> bool:
        """Whether its cap waits for an alert."""
        return bool(self.cap) and str(self.cap).endswith(ON_ALERT)

    def during(self, alerted: bool) -> Condition:
        """What is done at a turn of a conversation. alerted: whether an alert was raised at any turn before it."""
        return replace(self, cap=str(self.cap).removesuffix(ON_ALERT) if alerted else None) if self.waits else self


PLAIN = Condition("plain")


def steered(alphas: Sequence[float]) -> list[Condition]:
    """A condition for each alpha, in order; 0 is `plain`."""
    return [Condition(f"α {a:+.2f}", a) if a else PLAIN for a in sorted(alphas)]


def capped(names: Sequence[str]) -> list[Condition]:
    """A condition for each cap, by its name."""
    return [Condition(name, cap=name) for name in names]


def beside_plain(alphas: Sequence[float], caps: Sequence[str]) -> list[Condition]:
    """Plain first, then steered, then capped."""
    return [PLAIN, *(c for c in steered(alphas) if c != PLAIN), *capped(caps)]


def controls(conditions: Sequence[Condition], directions: int = 3, first: int = 0) -> list[Condition]:
    """The controls of what steers or caps, each along that many random directions, numbered from `first`: the same α at the
    same layer; for a cap, at each of its layers and at every token, a step as long as the cap's own is in the mean.

    A condition's controls are called after it, "α +0.30 random 1" and so on, whichever directions they are."""
    return [
        replace(condition, name=f"{condition.name} random {k + 1}", control=first + k)
        for condition in conditions
        if (condition.alpha or condition.cap) and condition.control is None and not condition.waits
        for k in range(directions)
    ]


def beside_axis(conditions: Sequence[Condition], directions: int) -> list[Condition]:
    """The controls of what steers or caps, along so many random directions and a shuffled axis; none for 0."""
    return [*controls(conditions, directions), *shuffled(conditions)] if directions else []


def compared(condition: str, effect: float, effects: Mapping[str, float]) -> BesideControls:
    """A condition's effect beside those of its controls, by their names, as `beside_axis` has them."""
    random = tuple(v for name, v in effects.items() if name.startswith(f"{condition} random "))
    return BesideControls(effect, random, effects.get(f"{condition} shuffled axis"))


def shuffled(conditions: Sequence[Condition]) -> list[Condition]:
    """The same along a shuffled axis, "capped shuffled axis" and so on."""
    return [
        replace(control, name=f"{control.name.rpartition(' random ')[0]} shuffled axis", control=SHUFFLED_AXIS)
        for control in controls(conditions, 1)
    ]
