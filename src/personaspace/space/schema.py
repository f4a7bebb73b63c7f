"""What a space's metadata may say, and which shapes its tensors have by that: checked where a file is read, so that whoever
shows a space, projects on it or caps with it meets nothing else. It knows nothing of what the figures mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from personaspace.errors import invalid_reason
from personaspace.json_text import shown
from personaspace.space.readings import READINGS, part

_STRICT = ConfigDict(extra="allow", strict=True)

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Pair = Annotated[list[float | None], Field(min_length=2, max_length=2)]


class _Model(BaseModel):
    model_config = _STRICT
    id: str
    fingerprint: str | None = None
    layers: Count | None = None
    hidden: Count | None = None


class _CapRecord(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)
    layers: list[Count] = Field(min_length=1)
    floors: list[Finite]
    other_name: str | None = Field(None, alias="is")
    why: dict[str, Any] | None = None


class _JudgeRecord(BaseModel):
    model_config = _STRICT
    name: str
    scores: dict[str, Count] | None = None


class _Calibration(BaseModel):
    model_config = _STRICT
    lengths: list[Count] = []
    roles: list[str] = []


class _Histogram(BaseModel):
    model_config = _STRICT
    edges: list[Finite]
    default: list[Finite]
    roles: list[Finite]


class _Nearest(BaseModel):
    model_config = _STRICT
    k: Count
    own: float
    chance: float
    n: Count


class _Agreement(BaseModel):
    model_config = _STRICT
    order: float
    interval: Pair


class _Null(BaseModel):
    model_config = _STRICT
    mean: float | None = None
    p95: float | None = None


class _Corrected(BaseModel):
    model_config = _STRICT
    axis_pc1_cosine_corrected: float | None = None
    components_for_70pct_corrected: float | None = None
    default_on_pc1_corrected: float | None = None
    axis_share: float | None = None
    effective_dimension: float | None = None
    spectrum_corrected: list[float] | None = None
    null: dict[str, _Null] | None = None
    corrected_interval: dict[str, Pair | list[Pair] | None] | None = None


class _TraitRecord(BaseModel):
    model_config = _STRICT
    description: str = ""
    clear: bool | None = None
    questions: Count | None = None
    wordings: Count | None = None


class SpaceMeta(BaseModel):
    """Metadata of a space, of one reading. Only model, layer and roles must be there: imported spaces have no more."""

    model_config = _STRICT
    model: _Model
    layer: Count
    roles: list[str] = Field(min_length=1)
    reading: Literal["prompt", "reply"] = "reply"
    traits: list[str] = []
    own: list[str] = []
    trait_records: dict[str, _TraitRecord] = {}
    caps: dict[str, _CapRecord] = {}
    left_out: dict[str, Count | str] = {}
    role_layers: list[Count] | None = None
    role_unit: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    n_responses: Count | None = None
    n_default: Count | None = None
    n_kept: Count | None = None
    asked: dict[str, Count] = {}
    axis_pc1: list[float | None] | None = None
    axis_pc1_interval: Pair | None = None
    reliability_interval: dict[str, Pair | None] = {}
    corrected: _Corrected | None = None
    readings_agree: _Agreement | None = None
    nearest: _Nearest | None = None
    judge: _JudgeRecord | None = None
    descriptions: dict[str, str] = {}
    samples: dict[str, list[Annotated[list[str], Field(min_length=2, max_length=2)]]] = {}
    histogram: _Histogram | None = None
    calibration: _Calibration | None = None
    seconds: dict[str, Finite] = {}
    sampling: dict[str, Any] = {}
    design: dict[str, Any] = {}
    catalog: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    version: str = ""
    span: Literal["answer", "thinking", "all"] = "answer"
    role_interval: str = ""
    layer_chosen: str = ""
    reference: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


class _Others(BaseModel):
    model_config = _STRICT
    other: dict[Literal["prompt", "reply"], dict[str, Any]] = Field({}, max_length=1)


SHAPES = {
    "role_vectors": "roles stored hidden",
    "default_vector": "layers hidden",
    "axis": "layers hidden",
    "trait_vectors": "traits * hidden",
    "trait_reliability": "traits",
    "trait_reliability_by_wording": "traits",
    "trait_cosine": "traits 3",
    "own_vectors": "own hidden",
    "reply_mean": "hidden",
    "reply_factor": "* hidden",
    "reply_rest": "1",
    "counts": "roles",
    "role_reliability": "roles",
    "role_interval": "roles 2",
    "axis_split_half": "layers",
    "order_split_half": "layers",
    "map_split_half": "layers",
    "axis_split_half_by_instruction": "layers",
    "order_split_half_by_instruction": "layers",
    "map_split_half_by_instruction": "layers",
    "split_half_factor": "layers",
    "split_half_by_instruction_factor": "layers",
    "variance_ratio": "layers",
    "cosine_error": "roles",
    "cosine_corrected": "roles",
    "separation": "layers",
    "components": "layers components hidden",
    "variance": "layers *",
    "residual_norm": "layers",
    "quantiles_default": "101 layers",
    "quantiles_roles": "101 layers",
    "quantiles_default_tokens": "101 layers",
    "quantiles_roles_tokens": "101 layers",
    "quantiles_all_tokens": "101 layers",
    "default_moments": "2 layers",
    "beginnings_default": "lengths *",
    "beginnings_roles": "lengths *",
}
"""The tensors of a space's file. Only the first three must be there, and of a second reading the axis and the default."""

REQUIRED = ("role_vectors", "default_vector", "axis")

UNKNOWN_AS_NAN = {
    name
    for name in SHAPES
    if "split_half" in name
    or name.startswith(("beginnings", "cosine", "role_reliability", "role_interval"))
    or name.startswith(("trait_reliability", "trait_cosine"))
} | {"separation", "variance_ratio", "default_moments", "variance"}
"""Tensors in which NaN stands for what is not known; in all others every number must be finite."""


def wrong(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with a space as it stands in its file, in words: its metadata or a tensor; None where nothing is."""
    try:
        others = _Others.model_validate({"other": meta.get("other", {})}).other
        parts = {"": SpaceMeta.model_validate(meta)}
        for reading in others:
            if reading == parts[""].reading:
                return f"its metadata has the reading {reading} twice"
            parts[f"{reading}."] = SpaceMeta.model_validate(part(dict(meta), {}, reading)[0])
    except ValidationError as e:
        first = e.errors()[0]
        where = shown(".".join(map(str, first["loc"])), 80)
        return f"its metadata: {where}: {invalid_reason(first)}, found {shown(first['input'])}"
    return next(
        (problem for start, of_part in parts.items() if (problem := _wrong_part(start, of_part, tensors))), None
    )


def _wrong_part(start: str, meta: SpaceMeta, tensors: Mapping[str, Tensor]) -> str | None:
    """The same of one reading, whose tensors' names begin so."""
    own = {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if (name.startswith(start) if start else name.partition(".")[0] not in READINGS)
    }
    required = REQUIRED[1:] if start else REQUIRED
    if lacks := [start + name for name in required if name not in own]:
        return f"it lacks the tensor {', '.join(lacks)}"
    if own["axis"].dim() != 2 or not all(own["axis"].shape):
        return f"{start}axis has the shape {list(own['axis'].shape)}, expected layers and hidden"
    layers, hidden = own["axis"].shape
    if meta.layer >= layers:
        return f"its metadata: layer: found {meta.layer}, and the axis has {layers} layers"
    for name, expected in (("layers", layers), ("hidden", hidden)):
        if (stated := getattr(meta.model, name)) not in (None, expected):
            return f"its metadata: model.{name}: found {stated}, and the axis has {expected}"
    for kind in ("roles", "traits", "own"):
        if len(set(names := getattr(meta, kind))) != len(names):
            return f"its metadata: {kind}: a name stands there twice"
    if not start and meta.role_layers is not None and meta.layer not in meta.role_layers:
        return f"its metadata: role_layers: lacks the space's own layer, {meta.layer}"
    for name, cap in meta.caps.items():
        if len(cap.layers) != len(cap.floors) or max(cap.layers) >= layers or len(set(cap.layers)) != len(cap.layers):
            return f"its metadata: caps.{shown(name)}: expected a floor for each layer, of 0 to {layers - 1}"
    if meta.histogram and not len(meta.histogram.edges) - 1 == len(meta.histogram.default) == len(meta.histogram.roles):
        return "its metadata: histogram: expected an edge more than there are counts"
    if meta.axis_pc1 and len(meta.axis_pc1) != layers:
        return f"its metadata: axis_pc1: found {len(meta.axis_pc1)} figures, and the axis has {layers} layers"
    sizes = {
        "roles": len(meta.roles),
        "traits": len(meta.traits),
        "own": len(meta.own),
        "layers": layers,
        "hidden": hidden,
        "stored": layers if meta.role_layers is None else len(meta.role_layers),
    }
    for name in [name for name in SHAPES if name in own]:
        tensor, names = own[name], SHAPES[name].split()
        expected_shape = [int(n) if n.isdigit() else sizes.get(n) for n in names]
        if tensor.dim() != len(names) or any(
            e not in (None, n) for e, n in zip(expected_shape, tensor.shape, strict=True)
        ):
            pairs = zip(names, expected_shape, strict=True)
            sizes_in_words = [n if size is None or n.isdigit() else f"{n} {size}" for n, size in pairs]
            return f"{start}{name} has the shape {list(tensor.shape)}, expected {', '.join(sizes_in_words)}"
        kind = "whole" if name == "counts" else "real"
        whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
        if not (whole if kind == "whole" else tensor.is_floating_point()):
            return f"{start}{name} holds {str(tensor.dtype).removeprefix('torch.')}, expected {kind} numbers"
        if name not in UNKNOWN_AS_NAN and not bool(tensor.isfinite().all()):
            return f"{start}{name} has NaN or Inf in it"
    if "trait_vectors" in own and own["trait_vectors"].shape[1] not in (layers, sizes["stored"]):
        return f"{start}trait_vectors has {own['trait_vectors'].shape[1]} layers, expected {sizes['stored']}"
    for name, of in (("trait_vectors", "traits"), ("own_vectors", "own")):
        if sizes[of] and name not in own and not start:
            return f"its metadata names {sizes[of]} {of}, and it lacks the tensor {name}"
    if "beginnings_default" in own:
        calibration = meta.calibration or _Calibration()
        columns = own["beginnings_roles"].shape[1] if "beginnings_roles" in own else -1
        if not 0 < len(calibration.lengths) <= len(own["beginnings_default"]) or len(calibration.roles) != columns:
            return "its metadata: calibration: does not fit the beginnings of replies that it holds"
    if ("components" in own) != ("variance" in own):
        return "it has components without their variance, or the other way round"
    return None
