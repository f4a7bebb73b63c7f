"""A model's persona space: role vectors, axis, PCA and what they are worth, as one safetensors file on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from personaspace._lazy import lazy_method
from personaspace.catalog import DEFAULT
from personaspace.errors import SpaceError
from personaspace.files import space_file, write_whole
from personaspace.model.interventions import Cap, Intervention, Where
from personaspace.space import certainty, layout, traits
from personaspace.space.contents import number_or_none
from personaspace.space.directions import SpaceDirections
from personaspace.space.holds import Hold
from personaspace.space.layout import BUNDLED
from personaspace.space.layout import FORMAT as FORMAT
from personaspace.space.readings import REPLY, part
from personaspace.stats.components import principal_components
from personaspace.stats.forecast import spearman_brown

if TYPE_CHECKING:
    import pandas

PUBLISHED: dict[str, Any] = {
    "axis_pc1_cosine": "above 0.71 (three models)",
    "components_for_70pct": {"Gemma 2 27B": 4, "Qwen 3 32B": 8, "Llama 3.3 70B": 19},
    "default_on_pc1": "within 0.03 of the end",
    "assistant_end": ["evaluator", "consultant", "analyst", "generalist", "reviewer"],
    "far_end": ["ghost", "hermit", "bohemian", "leviathan", "bard"],
}
"""The study's figures, to set beside one's own (arXiv 2601.10387)."""


class ModelLike(Protocol):
    """What a space asks of a model's description (`ModelInfo` has it)."""

    @property
    def id(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Location:
    """Where a mean activation lies. projection: on the unit axis, up is Assistant; drift: how far that is below the default's
    mean, in its standard deviations, None where the space does not know them; nearest: roles and cosines, nearest first."""

    projection: float
    drift: float | None
    nearest: list[tuple[str, float]]

    _repr_html_ = lazy_method("personaspace.report.tables:of_location")


@dataclass(frozen=True)
class PersonaSpace(SpaceDirections):
    """Everything about one model's characters (the paper's sections on persona space and the Assistant Axis).

    >>> space = PersonaSpace.load("smollm2")
    >>> (reply,) = engine.respond(prompts, sampling, read=range(30))  # at every layer: `[layers, hidden]`
    >>> drift = space.drift(float(space.project(reply.activation)))
    >>> len(space.nearest(reply.activation, k=3))
    3
    >>> held = engine.respond(prompts, sampling, interventions=[space.cap("capped"), space.steer(0.3, "poet")])

    tensors: `role_vectors [roles, layers, hidden]`, `default_vector` and `axis` `[layers, hidden]`, and where known `counts
    [roles]`, `role_reliability [roles]`, `role_interval [roles, 2]`, `axis_split_half` and `separation` `[layers]`,
    `components [layers, k, hidden]` and `variance [layers, components]` (PC1's sign is the axis'), `residual_norm [layers]`,
    `quantiles_default` and `quantiles_roles` `[101, layers]` (of responses' projections; `…_tokens` of tokens', after
    calibration), `default_moments [2, layers]` (mean and standard deviation of the default responses' projections), and at the
    space's layer `reply_mean [hidden]`, `reply_factor [k, hidden]` and `reply_rest` (how the default's replies lie about their
    mean, `moments_along`), `trait_vectors [traits, layers, hidden]`, `own_vectors [own, hidden]`.
    meta: what stands in the file's metadata: `format`, `model`, `layer`, `roles`, `caps`, provenance. A compact space has role
    vectors at one layer only, and says which: `role_layers`.
    """

    _towards: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _alikes: list[certainty.Alike] = field(default_factory=list, init=False, repr=False, compare=False)

    _repr_html_ = lazy_method("personaspace.report.tables:of_space")

    def of(self, reading: str) -> PersonaSpace:
        """The space of one of its readings; a compact space's other one has its axis and reliabilities, and no roles. Raises
        `SpaceError` where it does not hold it."""
        if reading not in self.readings:
            raise SpaceError(
                f"this space of {self.meta['model']['id']} was read from {' and '.join(self.readings)}, not {reading}; "
                f"a map with read={reading} adds it"
            )
        return self if reading == self.reading else PersonaSpace(*part(self.meta, self.tensors, reading))

    def project(self, activations: Tensor, layer: int | None = None) -> Tensor:
        """⟨activation, unit axis⟩ of `[…, layers, hidden]`, or of `[…, hidden]` at the layer: `[…]`. Nothing subtracted.
        `[n, hidden]` of as many rows as the model has layers is taken for one activation at every layer.

        Raises `SpaceError` for another shape.
        """
        chosen_layer = self._layer(layer)
        layers, hidden = self.tensors["axis"].shape
        if activations.shape[-1] != hidden:
            raise SpaceError(f"activations of {activations.shape[-1]} numbers; this space's model has {hidden}")
        if activations.dim() > 1 and activations.shape[-2] == layers:
            activations = activations[..., chosen_layer, :]
        return activations.float() @ self.axis_at(layer)

    def nearest(
        self, activation: Tensor, k: int = 5, layer: int | None = None, reading: str = REPLY
    ) -> list[tuple[str, float]]:
        """The k roles of highest cosine to an activation `[hidden]` or `[layers, hidden]`, the mean of roles taken off: of
        roles' replies, or, for an activation of the other reading, of roles' prompts."""
        chosen_layer = self._layer(layer)
        if activation.dim() == 2:
            activation = activation[chosen_layer]
        if (chosen_layer, reading) not in self._towards:  # asked of every token that is served
            units = torch.nn.functional.normalize(self.centred(chosen_layer)[0], dim=-1)
            self._towards[chosen_layer, reading] = units, self.centre(chosen_layer, reading)
        units, centre = self._towards[chosen_layer, reading]
        off = activation.float() - centre
        cosines = units @ off / off.norm().clamp(min=1e-8)
        best = cosines.topk(min(k, len(cosines)))
        return [(self.roles[i], float(c)) for c, i in zip(best.values, best.indices.tolist(), strict=True)]

    def centre(self, layer: int | None = None, reading: str = REPLY) -> Tensor:
        """What activations of a reading lie about, `[hidden]`: the mean of that reading's role vectors, or of the space's own
        where it does not hold it."""
        if reading == self.reading or reading not in self.readings:
            return self.centred(layer)[1]
        chosen_layer, tensors = self._layer(layer), self.of(reading).tensors
        mean: Tensor = tensors["default_vector"][chosen_layer] - tensors["axis"][chosen_layer]
        return mean

    def cap(self, name: str = "capped", where: Where = "all") -> Cap:
        """The named cap that calibration stored. Raises `SpaceError` with the names there are."""
        if name not in self.caps:
            available = ", ".join(self.caps) or "none; `personaspace calibrate` makes them"
            raise SpaceError(f"no cap {name!r} in this space: it has {available}")
        layers = self.caps[name]["layers"]
        axis = torch.stack([self.axis_at(layer) for layer in layers])
        return Cap(axis, tuple(layers), floor=tuple(self.caps[name]["floors"]), where=where)

    def hold(self, name: str) -> Intervention:
        """A cap, or what `space.holds` makes of one: `capped+mirror+answer`, … Raises `SpaceError`, `UsageError`."""
        hold = Hold.parse(name, self.caps)
        return hold.of(self.cap(hold.cap, hold.where), lambda layer: self.default_moments(layer)[0])

    def interventions(
        self, cap: str | None = None, steer: float | Sequence[tuple[float, str]] = 0.0
    ) -> tuple[Intervention, ...]:
        """Steering, then the cap, which so holds what was steered. cap: as `hold` has it, None for none; steer: α along the
        axis, 0 for none, or several of (α, direction) as `steer` has them. Raises `SpaceError`, `UsageError`.

        >>> both = space.interventions(cap="capped", steer=[(-0.3, "axis"), (0.1, "poet")])
        >>> replies = engine.respond(prompts, sampling, interventions=both)
        """
        steps = steer if isinstance(steer, Sequence) else [(steer, "axis")] if steer else []
        added = [self.steer(alpha, direction) for alpha, direction in steps]
        return (*added, self.hold(cap)) if cap is not None else tuple(added)

    def read(self, mean: Tensor, k: int = 5, layer: int | None = None) -> Location:
        """Where the mean activation of a reply lies, `[hidden]` or `[1, hidden]` at the layer or `[layers, hidden]`, with its
        k nearest roles. Raises `SpaceError` for another shape.

        >>> (reply,) = engine.respond(prompts[:1], sampling, read=[space.layer])
        >>> location = space.read(reply.activation, k=3)
        >>> len(location.nearest)
        3
        """
        layers, hidden = self.tensors["axis"].shape
        if mean.dim() == 2 and len(mean) in (1, layers):
            mean = mean[self._layer(layer) if len(mean) == layers else 0]
        if mean.dim() != 1:
            raise SpaceError(f"activations of shape {list(mean.shape)}; expected one reply's mean, [{hidden}]")
        mean = mean.float().cpu()
        projection = float(self.project(mean, layer))
        drift = self.drift(projection, layer) if self.knows_default else None
        return Location(projection, drift, self.nearest(mean, k, layer))

    def drift(self, projection: float, layer: int | None = None) -> float:
        """How far a projection has fallen from the default's mean, in its standard deviations; positive is away from
        the Assistant. Raises `SpaceError` where the space does not know them."""
        mean, std = self.default_moments(layer)
        return (mean - projection) / std

    def check_model(self, model: ModelLike, span: str = "answer") -> str | None:
        """Whether the space is of that model: raises `SpaceError` for other shapes; a sentence where the weights differ,
        whether it thinks before it answers, or the part of its replies that is read (`span`)."""
        layers, hidden = self.tensors["axis"].shape
        if (layers, hidden) != (model.layers, model.hidden):
            raise SpaceError(
                f"the space of {self.meta['model']['id']} is for {layers} layers of {hidden} numbers; "
                f"{model.id} has {model.layers} of {model.hidden}"
            )
        fingerprint = self.meta["model"].get("fingerprint")
        differences = []
        if fingerprint != model.fingerprint:
            differences.append(
                f"the space was made from other weights than {model.id}'s "
                f"(fingerprint {fingerprint or 'unknown'}, found {model.fingerprint}); a variant's figures may differ"
            )
        if difference := self.thinks_otherwise(model.id, getattr(model, "notes", {}).get("thinking")):
            differences.append(difference)
        if span != self.span:
            differences.append(
                f"the space was mapped with span={self.span}, here span={span} is read; drifts may differ"
            )
        return "; ".join(differences) or None

    def compact(self) -> PersonaSpace:
        """The same space, small: role vectors at its layer only, no components, no sample replies. Enough to project,
        monitor, steer and cap, and for a report of that layer."""
        tensors = {name: t for name, t in self.tensors.items() if name in layout.compact(self.tensors)}
        tensors["role_vectors"] = self.role_vectors_at()[:, None].clone()
        if self.traits:
            tensors["trait_vectors"] = self.trait_vectors_at()[:, None].clone()
        if "reply_factor" in tensors:
            tensors |= layout.fewer(tensors["reply_factor"], tensors["reply_rest"])
        meta = {k: v for k, v in self.meta.items() if k not in ("samples", "made_from")}
        for reading, reading_meta in meta.get("other", {}).items():
            smaller = {k: v for k, v in reading_meta.items() if k not in ("samples", "made_from", "histogram")}
            meta["other"] = {reading: {**smaller, "axis_pc1": self.of(reading).axis_pc1()}}
        if self.knows_pc1:
            meta["axis_pc1"] = self.axis_pc1()
        return PersonaSpace({**meta, "role_layers": [self.layer]}, tensors)

    def similar(self, role: str, k: int = 5) -> list[tuple[str, float]]:
        """The roles most like one, by cosine; shrunk by its noise where the space knows that. Raises `SpaceError` for a role
        that is not in the space."""
        row = self._alike().cosine[self._role(role)]
        return [(self.roles[i], float(row[i])) for i in np.argsort(-row)[: min(k, len(row) - 1)]]

    def neighbours(self, role: str, k: int = 5) -> tuple[list[tuple[str, float, tuple[float, float]]], int]:
        """Of a role's nearest k those that stand out from noise, with their cosine and its 95% interval, and how many of the k
        do not. To stand out, a cosine must be beyond what chance would give the nearest of all other roles. Raises
        `SpaceError` for an unknown role, or where the space does not know the cosines' errors."""
        self._tensor("cosine_error")
        alike, row_index = self._alike(), self._role(role)
        row, half = alike.cosine[row_index], alike.half[row_index]
        nearest = np.argsort(-row)[: min(k, len(row) - 1)]
        clear = [
            (self.roles[i], float(row[i]), (float(row[i] - half[i]), float(row[i] + half[i])))
            for i in nearest
            if alike.clear[row_index, i]
        ]
        return clear, len(nearest) - len(clear)

    def _alike(self) -> certainty.Alike:
        if not self._alikes:
            self._alikes.append(certainty.Alike.of(self.centred()[0], self.tensors.get("cosine_error")))
        return self._alikes[0]

    def axis_pc1(self) -> list[float]:
        """The cosine of axis and first component, at every layer. Raises `SpaceError` where the space does not know it."""
        if cosines := self.meta.get("axis_pc1"):
            return list(cosines)
        return torch.cosine_similarity(self.tensors["axis"], self._tensor("components")[:, 0], dim=-1).tolist()

    def components_at(self, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Components `[k, hidden]` at a layer, and their shares of the variance; a compact space's are computed anew."""
        chosen_layer = self._layer(layer)
        if self.stored_components:
            return self.tensors["components"][chosen_layer], self.tensors["variance"][chosen_layer]
        components, shares = principal_components(
            self.role_vectors_at(chosen_layer)[:, None], self.tensors["axis"][chosen_layer][None]
        )
        return components[0], shares[0]

    def axis_reliability(self) -> list[float]:
        """The axis' reliability at every layer: cosine between halves of the questions, Spearman–Brown for the whole."""
        whole: list[float] = spearman_brown(self._tensor("axis_split_half").numpy()).tolist()
        return whole

    def place_on_pc(self, component: int) -> float:
        """Where the default lies on a component, from the nearer end (PC1: the Assistant's), of a range of 1."""
        vectors, mean = self.centred()
        direction = self.components_at()[0][component]
        on = vectors @ direction
        default = (self.tensors["default_vector"][self.layer] - mean) @ direction
        low, high = min(on.min(), default), max(on.max(), default)
        place = float((high - default) / (high - low).clamp(min=1e-12))
        return place if component == 0 else min(place, 1 - place)

    def summary(self) -> dict[str, Any]:
        """The figures that `personaspace show` prints; see the design for each one. None for one that the space lacks."""
        layer, t = self.layer, self.tensors
        components, variance = self.components_at()
        return {
            "model": self.meta["model"]["id"],
            "layers": t["axis"].shape[0],
            "hidden_size": t["axis"].shape[1],
            "layer": layer,
            "n_roles": len(self.roles),
            "n_responses": self.meta.get("n_responses"),
            "axis_pc1_cosine": float(torch.cosine_similarity(t["axis"][layer], components[0], dim=-1)),
            "axis_pc1_interval": self.meta.get("axis_pc1_interval"),
            "variance_explained": variance.tolist(),
            "components_for_70pct": int((variance.cumsum(0) < 0.7).sum()) + 1,
            "roles": self._ranking(),
            "left_out": self.meta.get("left_out", {}),
            "default_projection": self._default_projection(),
            "default_on_pc1": self.place_on_pc(0),
            "axis_split_half": self._figure("axis_split_half"),
            "axis_reliability": number_or_none(self.axis_reliability()[layer]) if self.knows_axis_reliability else None,
            "separation": self._figure("separation"),
            **certainty.figures(self.meta, t, layer),
            "readings": {reading: self.of(reading).worth() for reading in self.readings},
            "readings_agree": self.meta.get("readings_agree"),
            "nearest": self.meta.get("nearest"),
            "published": PUBLISHED,
            "caps": self.caps,
            "judge": self.meta.get("judge"),
            "traits": traits.ranking(self),
        }

    def worth(self) -> dict[str, Any]:
        """What `summary` says of one reading: how much was read, and how sure its figures are."""
        counts = self.meta.get("asked", {})
        return {
            "layer": self.layer,
            "n_responses": self.meta.get("n_responses"),
            "n_default": self.meta.get("n_default"),
            "per_role": min((n for role, n in counts.items() if role != DEFAULT), default=None),
            "axis_pc1_cosine": self.axis_pc1()[self.layer] if self.knows_pc1 else None,
            "axis_pc1_interval": self.meta.get("axis_pc1_interval"),
            "separation": self._figure("separation"),
            **certainty.figures(self.meta, self.tensors, self.layer),
        }

    def _ranking(self) -> list[dict[str, Any]]:
        t = self.tensors
        projections = self.role_vectors_at() @ self.axis_at()
        cosines = torch.cosine_similarity(self.centred()[0], self.axis_at()[None], dim=-1)
        return [
            {
                "name": self.roles[i],
                "projection": float(projections[i]),
                "cosine": float(cosines[i]),
                "n": int(t["counts"][i]) if self.knows_counts else None,
                "reliability": number_or_none(float(t["role_reliability"][i])) if "role_reliability" in t else None,
                "interval": _ends(t["role_interval"][i]) if self.knows_role_intervals else None,
                "cosine_corrected": number_or_none(float(t["cosine_corrected"][i]))
                if "cosine_corrected" in t
                else None,
            }
            for i in projections.argsort(descending=True).tolist()
        ]

    def _default_projection(self) -> dict[str, float] | None:
        if not self.knows_default or "quantiles_default" not in self.tensors:
            return None
        q = self.tensors["quantiles_default"][:, self.layer].tolist()
        mean, std = self.default_moments()
        return {"mean": mean, "std": std, "p01": q[1], "p25": q[25], "p50": q[50], "p75": q[75]}

    def to_dataframe(self) -> pandas.DataFrame:
        """The roles as a pandas table, most Assistant-like first."""
        import pandas

        return pandas.DataFrame(self.summary()["roles"])

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all."""
        write_whole(Path(path), layout.written(self.meta, self.tensors))

    @classmethod
    def load(cls, source: str | Path) -> PersonaSpace:
        """A space from its file, a run's folder, `hf://owner/name`, or `smollm2`, the one that comes with the package.
        Raises `SpaceError` for anything else."""
        meta, tensors = layout.read(space_file(str(source), BUNDLED))
        return cls(meta, tensors)


def _ends(interval: Tensor) -> list[float] | None:
    """None where nobody was asked twice: then nothing is known of how places spread."""
    return None if interval.isnan().any() else interval.tolist()
