"""What a space's file holds, and so what can be done with it: imported and compact spaces lack some. It computes nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from personaspace.errors import SpaceError
from personaspace.space.readings import REPLY

if TYPE_CHECKING:
    from personaspace.engines.thoughts import Part


@dataclass(frozen=True)
class SpaceContents:
    """A space's metadata and tensors, and questions to them; which there are, `PersonaSpace` says.

    >>> space = ps.PersonaSpace.load("smollm2")
    >>> space.knows_default, space.calibrated, space.can_steer, list(space.caps)[:2]
    (True, True, True, ['capped', 'default-p1@18:26'])
    """

    meta: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def roles(self) -> list[str]:
        """Role names, in the order of `role_vectors`."""
        return list(self.meta["roles"])

    @property
    def reading(self) -> str:
        """Which reading its axis, layer and role vectors are of: `prompt` or `reply`."""
        return str(self.meta.get("reading", REPLY))

    @property
    def readings(self) -> tuple[str, ...]:
        """All that it holds, its own first."""
        return (self.reading, *self.meta.get("other", {}))

    @property
    def layer(self) -> int:
        """The layer at which the space is read unless another is asked for."""
        return int(self.meta["layer"])

    @property
    def caps(self) -> dict[str, dict[str, Any]]:
        """Caps that calibration stored, by name: `layers`, `floors`, and where they come from. Empty where it never ran."""
        caps: dict[str, dict[str, Any]] = self.meta.get("caps", {})
        return caps

    @property
    def knows_default(self) -> bool:
        """Whether it knows how the default's replies lie on the axis, and that they differ, so that there is a drift."""
        return "default_moments" in self.tensors and bool(self.tensors["default_moments"][1, self.layer] > 0)

    @property
    def calibrated(self) -> bool:
        """Whether calibration measured how sure an alert is (`holding.monitor.alert_rule`)."""
        return "beginnings_default" in self.tensors

    @property
    def can_steer(self) -> bool:
        """Whether it knows the residual stream's norms, which α of `steer` is in units of."""
        return "residual_norm" in self.tensors

    @property
    def is_compact(self) -> bool:
        """Whether it has role vectors at one layer only (`compact`)."""
        return "role_layers" in self.meta

    @property
    def stored_components(self) -> int:
        """How many components it holds at every layer; 0 where `components_at` computes those of its own layer anew."""
        return self.tensors["components"].shape[1] if "components" in self.tensors else 0

    @property
    def knows_pc1(self) -> bool:
        """Whether `axis_pc1` can say how axis and first component agree at every layer."""
        return bool(self.meta.get("axis_pc1") or self.stored_components)

    @property
    def knows_axis_reliability(self) -> bool:
        """Whether the axes of halves of the questions were compared (`axis_reliability`)."""
        return "axis_split_half" in self.tensors

    @property
    def knows_cosine_errors(self) -> bool:
        """Whether it knows how sure roles' cosines are, so that `neighbours` can say which stand out from noise."""
        return "cosine_error" in self.tensors

    @property
    def knows_role_intervals(self) -> bool:
        """Whether it knows how sure roles' places on the axis are (95% intervals)."""
        return "role_interval" in self.tensors

    @property
    def knows_counts(self) -> bool:
        """Whether it knows how many responses of each role it was made from."""
        return "counts" in self.tensors

    @property
    def knows_question_variance(self) -> bool:
        """Whether it knows the variance of errors over that of questions, at every layer."""
        return "variance_ratio" in self.tensors

    @property
    def thinking_options(self) -> dict[str, Any]:
        """An engine's options with which its model thinks as it did while it was mapped; none where thinking was off."""
        rule = self.meta["model"].get("notes", {}).get("thinking", "off")
        return {} if rule in ("off", "always") else {"thinking": rule if rule != "on" else True}

    @property
    def span(self) -> Part:
        """What of replies was read while it was mapped."""
        part: Part = self.meta.get("span", "answer")
        return part

    def thinks_otherwise(self, model: str, rule: str | None) -> str | None:
        """A sentence where a model is used with thinking on and its space was mapped with thinking off, or the other way round.
        rule: the model's (`ModelInfo.notes`); None for one that knows no thoughts."""
        # Before the rule was noted, thinking was off.
        mapped = self.meta["model"].get("notes", {}).get("thinking", "off")
        if rule is None or rule == mapped or {rule, mapped} == {"off", "always"}:
            return None
        return (
            f"the space was mapped with thinking {mapped}, {model} is used with thinking {rule}; what is read of answers "
            "after thoughts may differ"
        )

    def default_moments(self, layer: int | None = None) -> tuple[float, float]:
        """Mean and standard deviation of the default's replies on the axis. Raises `SpaceError` where it does not know them
        (`knows_default`), or the replies do not differ."""
        mean, std = self._tensor("default_moments")[:, self._layer(layer)].tolist()
        if not std > 0:
            raise SpaceError(
                f"layer {self._layer(layer)}: the default's replies do not differ there, so that nothing drifts"
            )
        return mean, std

    def figure_by_layer(self, name: str) -> list[float | None] | None:
        """A tensor `[layers]` as numbers, None where it is undefined; None for one that the space lacks."""
        return [number_or_none(x) for x in self.tensors[name].tolist()] if name in self.tensors else None

    def _figure(self, name: str) -> float | None:
        figures = self.figure_by_layer(name)
        return None if figures is None else figures[self.layer]

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise SpaceError(f"this space of {self.meta['model']['id']} lacks {name}; a map of the model has it")
        return self.tensors[name]

    def _role(self, name: str) -> int:
        if name not in self.roles:
            close = difflib.get_close_matches(name, self.roles, 3)
            hint = f"; nearest: {', '.join(close)}" if close else ""
            raise SpaceError(f"no role {name!r} in this space of {len(self.roles)}{hint}")
        return self.roles.index(name)

    def _layer(self, layer: int | None) -> int:
        layers = self.tensors["axis"].shape[0]
        chosen_layer = self.layer if layer is None else layer
        if not 0 <= chosen_layer < layers:
            raise SpaceError(f"layer {chosen_layer}: this space has layers 0 to {layers - 1}")
        return chosen_layer


def number_or_none(x: float) -> float | None:
    return None if np.isnan(x) else x
