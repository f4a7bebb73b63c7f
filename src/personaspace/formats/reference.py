"""The study's files: reads a folder of them, as published or as its pipeline writes them, and writes one as published.

A folder holds `assistant_axis.pt`, `default_vector.pt`, `role_vectors/ROLE.pt` and `trait_vectors/TRAIT.pt`, each a tensor
`[layers, hidden]` or a dict with one under `vector`, and `capping_config.pt`: vectors `[hidden]` with their layers, and
experiments that cap projections on them. The published axis is default − roles, as ours is. The published capping vectors
point away from the Assistant, so that their caps are ceilings: a ceiling τ is a floor of −τ along the negated vector.

The pipeline that anybody can run writes `vectors/ROLE.pt`, a dict with `vector`, `role` and `type` (the default's is `mean`),
and `axis.pt`, a dict with `axis` and the means that it is the difference of.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, ValidationError
from torch import Tensor

from personaspace.errors import RunError, SpaceError, UsageError, invalid_reason
from personaspace.files import new_folder, write_whole
from personaspace.formats.tensor_files import load_tensor_file
from personaspace.model.dtypes import DTYPES
from personaspace.model.interventions import Cap
from personaspace.space import PersonaSpace
from personaspace.space.layout import FORMAT
from personaspace.stats.components import principal_components

AXIS, DEFAULT, CAPPING = "assistant_axis", "default_vector", "capping_config"
ROLES, TRAITS = "role_vectors", "trait_vectors"
PIPELINE_AXIS, PIPELINE_VECTORS = "axis", "vectors"
_DTYPES: dict[str, torch.dtype] = {names.torch: getattr(torch, names.torch) for names in DTYPES.values()}
OPPOSITE = -0.999
"""At that cosine with the axis, or under it, a capping vector is the negated axis."""

RECOMMENDED = {64: "layers_46:54-p0.25", 80: "layers_56:72-p0.25"}
"""The capping experiment that the study recommends, by a model's layers: Qwen 3 32B's, and Llama 3.3 70B's."""

FILES = tuple(f"{name}.pt" for name in (AXIS, DEFAULT, CAPPING, PIPELINE_AXIS))
FOLDERS = (ROLES, TRAITS, PIPELINE_VECTORS)
"""All that is read of a folder: these files, and `*.pt` in these folders."""


class _Vector(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    vector: Tensor
    layer: NonNegativeInt


class _Step(BaseModel):
    vector: str
    cap: FiniteFloat | None = None


class _Experiment(BaseModel):
    id: str
    interventions: list[_Step]


class _Config(BaseModel):
    vectors: dict[str, _Vector]
    experiments: list[_Experiment]


def read_reference(folder: str | Path, model: str = "unknown", layer: int | None = None) -> PersonaSpace:
    """The space of a folder of files as published, or as the study's pipeline writes them; layer None is the middle one.

    Of axis and default vector one may be missing: it follows from the other and the mean role vector. Traits are kept as
    `trait_vectors [traits, layers, hidden]`, named by `traits` of the metadata. An experiment whose vectors are the negated
    axis also becomes a named cap, and the one that the study recommends, or the only one, is `capped` as well.
    fp64 is rounded to fp32. Raises `SpaceError` where something is missing, broken, of another shape or asks to be run.
    """
    root = Path(folder)
    vectors, forms = _read_vectors(root)
    roles, traits = _under(ROLES, vectors), _under(TRAITS, vectors)
    lacking = [f"{ROLES}/*.pt"] * (not roles) + [f"{AXIS}.pt or {DEFAULT}.pt"] * (not {AXIS, DEFAULT} & vectors.keys())
    if lacking:
        raise SpaceError(
            f"{folder}: no {' and no '.join(lacking)}; expected a folder of the study's files, as published "
            f"or as its pipeline writes them ({PIPELINE_VECTORS}/ROLE.pt and {PIPELINE_AXIS}.pt)"
        )
    stacked = torch.stack(list(roles.values()))
    mean = stacked.mean(0)
    axis = vectors[AXIS] if AXIS in vectors else vectors[DEFAULT] - mean
    layers, hidden = axis.shape
    if layer is not None and not 0 <= layer < layers:
        raise SpaceError(f"layer {layer}: the vectors in {folder} have layers 0 to {layers - 1}")
    tensors = {ROLES: stacked, "axis": axis, DEFAULT: vectors.get(DEFAULT, axis + mean)}
    if traits:
        tensors[TRAITS] = torch.stack(list(traits.values()))
    if len(roles) > 1:
        tensors["components"], tensors["variance"] = principal_components(stacked, axis)
    meta = {
        "format": FORMAT,
        "model": {"id": model, "layers": layers, "hidden": hidden, "fingerprint": None},
        "layer": layers // 2 if layer is None else layer,
        "roles": list(roles),
        "traits": list(traits),
        "caps": {},
        "provenance": {"format": "reference", "folder": root.resolve().name},
        "reference": forms,
    }
    space = PersonaSpace(meta, tensors)
    if (root / f"{CAPPING}.pt").exists():
        _add_capping(space, root / f"{CAPPING}.pt")
    return space


def write_reference(space: PersonaSpace, folder: str | Path) -> None:
    """Writes a space as a new folder of published files, whole or not at all: vectors, traits, and caps as ceilings.

    Plain tensors in fp32, but what was read from such files is written in their form and dtype, with all they held.
    Raises `SpaceError` for a compact space, a role that cannot be a file's name, or a folder that has something in it.
    """
    root = Path(folder)
    try:
        with new_folder(root) as new:
            if root.exists() and (not root.is_dir() or any(root.iterdir())):
                raise SpaceError(f"{folder}: is there already, and not empty; expected a new folder")
            for name, content in _contents(space):
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                _save(new / f"{name}.pt", content)
    except RunError as e:
        raise SpaceError(str(e)) from None


def read_capping(path: str | Path) -> dict[str, tuple[Cap, ...]]:
    """The experiments of a published `capping_config.pt`, by id: a `Cap` with a ceiling for each of its vectors, in their
    order. An experiment without caps is left out. Raises `SpaceError`."""
    config, _ = _read_config(Path(path))
    try:
        caps = {e.id: tuple(_cap(config, s) for s in e.interventions if s.cap is not None) for e in config.experiments}
    except UsageError as e:
        raise SpaceError(f"{path}: {e}") from None
    return {name: each for name, each in caps.items() if each}


def write_capping(path: str | Path, experiments: Mapping[str, Sequence[Cap]]) -> None:
    """Writes caps as a published `capping_config.pt`, whole or not at all; a floor as a ceiling along the negated vector.
    Raises `SpaceError` for a cap on generated tokens only, which such a file cannot say."""
    config: dict[str, Any] = {"vectors": {}, "experiments": []}
    _add_experiments(config, experiments)
    _save(Path(path), config)


def _read_vectors(root: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Vectors `[layers, hidden]` in fp32 by their files' names as published, and each file's form: what it holds, but in a
    tensor's place the name of its dtype."""
    vectors: dict[str, Tensor] = {}
    forms: dict[str, Any] = {}
    pipeline_defaults: list[Tensor] = []
    first: tuple[str, list[int]] | None = None
    for name, path in _files(root).items():
        loaded = load_tensor_file(path)
        keyed = isinstance(loaded, dict)
        key = "axis" if keyed and name == AXIS and "vector" not in loaded else "vector"
        vector = _checked(path, loaded.get(key, loaded) if keyed else loaded, 2)
        first = first or (path.name, list(vector.shape))
        if list(vector.shape) != first[1]:
            raise SpaceError(f"{path}: found shape {list(vector.shape)}, expected {first[1]} as in {first[0]}")
        if (
            keyed
            and path.parent == root / PIPELINE_VECTORS
            and (path.stem == "default" or loaded.get("type") == "mean")
        ):
            pipeline_defaults.append(vector.float())
            continue
        vectors[name] = vector.float()
        # Beside the axis the pipeline keeps the means that it was taken from, for which no published file has a place.
        keeps_form = keyed and key == "vector"
        forms[name] = _plain(path, {**loaded, "vector": _name(vector)}) if keeps_form else _name(vector)
    if pipeline_defaults and DEFAULT not in vectors:
        vectors[DEFAULT], forms[DEFAULT] = torch.stack(pipeline_defaults).mean(0), "float32"
    return vectors, forms


def _files(root: Path) -> dict[str, Path]:
    """The files of vectors in a folder by their names as published; of two that mean the same, the published one."""
    axis_files = [root / f"{AXIS}.pt", root / f"{PIPELINE_AXIS}.pt"]
    files = {AXIS: next((path for path in axis_files if path.exists()), None), DEFAULT: root / f"{DEFAULT}.pt"}
    paths = {name: path for name, path in files.items() if path and path.exists()}
    for group, folders in ((ROLES, (ROLES, PIPELINE_VECTORS)), (TRAITS, (TRAITS,))):
        in_folders = (sorted((root / folder).glob("*.pt")) for folder in folders)
        paths |= {f"{group}/{path.stem}": path for path in next(filter(None, in_folders), [])}
    return paths


def _under(group: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}/"): v for name, v in vectors.items() if name.startswith(f"{group}/")}


def _checked(path: Path, loaded: Any, dims: int) -> Tensor:
    description = f"a dict with {str(list(loaded)[:6])[:200]}" if isinstance(loaded, dict) else type(loaded).__name__
    if isinstance(loaded, Tensor):
        description = f"a {_name(loaded)} tensor of shape {list(loaded.shape)}"
        if loaded.dim() == dims and loaded.numel() and loaded.is_floating_point() and loaded.layout == torch.strided:
            if torch.isfinite(loaded).all():
                return loaded.detach()
            description = "NaN or Inf"
    expected = "a tensor [layers, hidden] or a dict with one under 'vector'" if dims == 2 else "vectors [hidden]"
    raise SpaceError(f"{path}: found {description}; expected {expected}, of finite floating point numbers")


def _plain(path: Path, form: dict[str, Any]) -> dict[str, Any]:
    """The same form, where a space's metadata can hold it."""
    try:
        same = json.loads(json.dumps(form)) == form
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise SpaceError(f"{path}: holds more than vectors, numbers and text, among {str(list(form)[:6])[:200]}")
    return form


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_config(path: Path) -> tuple[_Config, dict[str, Any]]:
    """The configuration checked, and as it stands in the file."""
    raw = load_tensor_file(path)
    try:
        config = _Config.model_validate(raw)
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(map(repr, error["loc"])) or "the file"
        raise SpaceError(f"{path}: not a capping configuration: {where}: {invalid_reason(error)}") from None
    for entry in config.vectors.values():
        entry.vector = _checked(path, entry.vector, 1)
    named = {s.vector for e in config.experiments for s in e.interventions}
    for name in sorted(named - config.vectors.keys()):
        raise SpaceError(f"{path}: an experiment names the vector {name!r}, which the file does not hold")
    return config, raw


def _cap(config: _Config, step: _Step) -> Cap:
    entry = config.vectors[step.vector]
    return Cap(entry.vector.float(), (entry.layer,), ceiling=step.cap)


def _add_capping(space: PersonaSpace, path: Path) -> None:
    """Keeps a configuration in a space: all of it, and experiments along the negated axis as caps with floors."""
    config, raw = _read_config(path)
    layers, hidden = space.tensors["axis"].shape
    for name, entry in config.vectors.items():
        if entry.layer >= layers or len(entry.vector) != hidden:
            raise SpaceError(
                f"{path}: {name!r} is {len(entry.vector)} numbers at layer {entry.layer}; "
                f"expected {hidden} at a layer from 0 to {layers - 1}"
            )
    form = {
        **raw,
        "vectors": {name: {**entry, "vector": _name(entry["vector"])} for name, entry in raw["vectors"].items()},
    }
    space.meta["reference"][CAPPING] = _plain(path, form)
    if config.vectors:
        space.tensors["capping_vectors"] = torch.stack([entry.vector.float() for entry in config.vectors.values()])
    for name, caps in read_capping(path).items():
        cap_layers = [c.layers[0] for c in caps]
        cosines = [
            float(space.axis_at(k) @ (c.vector / c.vector.norm())) for k, c in zip(cap_layers, caps, strict=True)
        ]
        if max(cosines) < OPPOSITE and len(set(cap_layers)) == len(cap_layers):
            floors = [-tau for c in caps for _, _, tau in _ceilings(c)]
            space.meta["caps"][name] = {"layers": cap_layers, "floors": floors, "of": "published", "percentile": None}
    _recommend(space.meta, layers)


def _recommend(meta: dict[str, Any], layers: int) -> None:
    """Gives the recommended cap the name that commands and servers take where none is asked for."""
    caps, name, because = meta["caps"], RECOMMENDED.get(layers), "the study recommends it"
    if name not in caps and len(caps) == 1:
        (name,), because = caps, "it is the only one in the files"
    if name in caps and "capped" not in caps:
        meta["caps"] = {"capped": {**caps[name], "is": name, "why": {"because": because}}, **caps}


def _ceilings(cap: Cap) -> Iterator[tuple[int, Tensor, float]]:
    """What a cap does as the published files say it: layer, vector `[hidden]` and ceiling."""
    vectors = cap.vector.float().expand(len(cap.layers), -1)
    for sign, side in ((1.0, cap.ceiling), (-1.0, cap.floor)):
        each = side if isinstance(side, tuple) else ()
        for layer, vector, value in zip(cap.layers, vectors, each, strict=False):
            yield layer, sign * vector, sign * value


def _add_experiments(config: dict[str, Any], experiments: Mapping[str, Sequence[Cap]]) -> None:
    for name, caps in experiments.items():
        steps = []
        for cap in caps:
            if cap.where != "all":
                raise SpaceError(f"cap {name!r} acts on generated tokens only; a published file holds caps on all")
            for layer, vector, ceiling in _ceilings(cap):
                key = f"layer_{layer}/{hashlib.sha256(vector.numpy().tobytes()).hexdigest()[:12]}"
                config["vectors"][key] = {"vector": vector, "layer": layer}
                steps.append({"vector": key, "cap": ceiling})
        config["experiments"].append({"id": name, "interventions": steps})


def _save(path: Path, content: Any) -> None:
    data = io.BytesIO()
    torch.save(content, data)
    write_whole(path, data.getvalue())


def _contents(space: PersonaSpace) -> Iterator[tuple[str, Any]]:
    """A space's files by name, as they are written."""
    if space.meta.get("role_layers") is not None:
        raise SpaceError("a compact space holds role vectors at one layer only; export the whole one")
    forms = space.meta.get("reference", {})
    vectors = {AXIS: space.tensors["axis"], DEFAULT: space.tensors[DEFAULT]}
    for group, names in ((ROLES, space.roles), (TRAITS, space.meta.get("traits", []))):
        for name, vector in zip(names, space.tensors.get(group, ()), strict=True):
            if set(name) & set("/\\\0"):
                raise SpaceError(f"{name!r} cannot be a file's name; rename it in the space")
            vectors[f"{group}/{name}"] = vector
    for name, vector in vectors.items():
        form = forms.get(name, "float32")
        yield name, {**form, "vector": _copy(vector, form["vector"])} if isinstance(form, dict) else _copy(vector, form)
    config = _capping(space, forms.get(CAPPING, {"vectors": {}, "experiments": []}))
    if CAPPING in forms or config["experiments"]:
        yield CAPPING, config


def _copy(vector: Tensor, dtype: str) -> Tensor:
    # A copy, since torch.save writes the whole storage that a view looks at.
    return vector.to(_DTYPES.get(dtype, torch.float32), copy=True)


def _capping(space: PersonaSpace, form: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that was read with the space, and the caps that the space has got since."""
    entries = zip(form["vectors"].items(), space.tensors.get("capping_vectors", ()), strict=True)
    vectors = {name: {**plain, "vector": _copy(vector, plain["vector"])} for (name, plain), vector in entries}
    config = {**form, "vectors": vectors, "experiments": list(form["experiments"])}
    present = {experiment["id"] for experiment in config["experiments"]}
    # A name that was given on import to an experiment of the files is none of theirs.
    _add_experiments(
        config, {name: (space.cap(name),) for name, cap in space.caps.items() if not {name, cap.get("is")} & present}
    )
    return config
