"""From sums and a sample of activations to a persona space: which roles count, and every figure; it writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from personaspace.catalog import DEFAULT
from personaspace.errors import DesignError
from personaspace.mapping.sums import Source
from personaspace.space import PersonaSpace
from personaspace.space.layout import FORMAT
from personaspace.space.readings import PROMPT
from personaspace.stats import corrected, mixed, reliability, vectors
from personaspace.stats.components import principal_components
from personaspace.stats.forecast import spearman_brown
from personaspace.stats.noise import Sample

SPLITS, BY_LAYER, FOLDS, BOOTSTRAPS = 20, 10, 10, 100
DEPTH = 2 / 3
PLATEAU = 0.02
"""Reliabilities that differ by less are the same to who reads the map."""
NOISE_FROM = 512, 2048
"""Responses of the default and of all roles together that noise is learnt from: more say little more of it."""

SUMS_MEMORY = 512 << 20
"""Bytes that the sums by cell may take; layers are worked through in as many passes as that needs."""


@dataclass(frozen=True)
class Counted:
    """A source, the cells of the roles that have enough responses, and which of its sample are theirs, `[sample]`.

    counts: responses that count, by role, the default among them, also of those left out.
    """

    source: Source
    cells: vectors.Cells
    sampled: NDArray[np.bool_]
    counts: dict[str, int]
    left_out: dict[str, str]


def counted(source: Source, roles: Sequence[str], asked: Mapping[str, int], min_responses: int | None) -> Counted:
    """Which roles have enough responses that count; roles: all of the catalogue's, in order.

    Raises `DesignError` where the default has none or fewer than two roles are left.
    """
    names = [DEFAULT, *roles]
    counts = dict(zip(names, source.n.sum(1).tolist(), strict=True))
    left_out = {}
    for name in roles:
        least = max(1, min_responses or -(-asked.get(name, 0) // 2))
        if not asked.get(name, 0):
            continue  # an aim for the axis alone is content with a sample of roles
        if counts[name] < least:
            left_out[name] = f"{counts[name]} of {asked.get(name, 0)} responses kept, {least} needed"
    shown = [k for k, name in enumerate(names) if name not in left_out and (asked.get(name, 0) or name == DEFAULT)]
    if not counts[DEFAULT] or len(shown) < 3:
        raise DesignError(
            f"{counts[DEFAULT]} responses of the default and {len(shown) - 1} roles with enough responses are left; "
            "expected one and two at least (a lower --min-responses or another --judge keeps more)"
        )
    cells = vectors.Cells.counted([names[k] for k in shown], source.n, source.block_of, shown)
    return Counted(source, cells, np.isin(source.role, shown), counts, left_out)


def reliabilities(kept: Counted, layer: int, seed: int, names: Sequence[str] = ("axis",)) -> dict[str, float]:
    """The axis' reliability at one layer, and the others of `names` (`order`, `map`): what `until` looks at between rounds. 0
    where the data do not tell yet."""
    layers = slice(layer, layer + 1)
    sums, ratios = kept.source.sums(kept.cells, layers), variance_ratios(kept, layers)
    half = reliability.split_half(reliability.split_fits(kept.cells, SPLITS, seed), sums, ratios)
    wholes = {"axis": spearman_brown(half.axis)}
    wholes |= {name: spearman_brown(getattr(half, name), half.factor) for name in names if name != "axis"}
    return {name: float(np.nan_to_num(value[0])) for name, value in wholes.items()}


def unit_axis(kept: Counted, hidden: int) -> Tensor:
    """The axis at every layer as unit vectors, `[layers, hidden]`, and nothing else."""
    fit = vectors.Fit(kept.cells)
    parts = [
        fit.axis(kept.source.sums(kept.cells, some), variance_ratios(kept, some)) for some in _passes(kept, hidden)
    ]
    axis = torch.cat(parts)
    unit: Tensor = (axis / axis.norm(dim=-1, keepdim=True)).float()
    return unit


def on_replies(kept: Counted, axis: Tensor, layer: int) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """What holding a model goes by, of its replies whichever reading found the axis `[layers, hidden]`: how they lie on it, and
    the residual norm; and the histogram at a layer."""
    on = _along(kept, axis)
    is_default = kept.source.role[kept.sampled] == 0
    return _spread(kept, on, is_default), _histogram(on[:, layer], is_default)


def own_role_near(kept: Counted, space: PersonaSpace, k: int = 5) -> dict[str, float]:
    """How much a reply's nearest roles say: own, the share of roles' replies whose own role is among the k nearest at the
    space's layer, beside what chance gives. The space is to be one that these replies had no say in."""
    names = dict(zip(kept.cells.shown, kept.cells.names, strict=True))
    blocks = list(kept.source.sample(kept.sampled, slice(space.layer, space.layer + 1)))
    own = [
        names[role] in dict(space.nearest(activation, k))
        for role, activation in zip(kept.source.role[kept.sampled], torch.cat(blocks)[:, 0].float(), strict=True)
        if role > 0
    ]
    return {"k": k, "own": float(np.mean(own)) if own else float("nan"), "chance": k / len(space.roles), "n": len(own)}


def layer_of_replies(kept: Counted, axis: Tensor, seed: int) -> int:
    """The layer at which replies are told apart best along an axis `[layers, hidden]` that was found without them: the
    default's from roles', by folds of the questions as in `estimate`, and the first within a standard error of the best."""
    folds = min(FOLDS, kept.cells.blocks)
    fold = np.random.default_rng(seed).permutation(np.arange(kept.cells.blocks) % folds)
    return vectors.pick_layer(_separation(kept, _along(kept, axis), fold))


def _along(kept: Counted, axis: Tensor) -> vectors.Floats:
    """Each sampled response's projection on an axis `[layers, hidden]` at its own layer, `[sample, layers]`."""
    unit, on = axis / axis.norm(dim=-1, keepdim=True), []
    for some in _passes(kept, axis.shape[1]):
        blocks = kept.source.sample(kept.sampled, some)
        on.append(torch.cat([torch.einsum("nld,ld->nl", block.float(), unit[some]) for block in blocks]))
    result: vectors.Floats = torch.cat(on, 1).double().numpy()
    return result


def layer_of_prompts(order: vectors.Floats, map_: vectors.Floats) -> int:
    """The first layer at which the order and the map are both about as reliable as at their best layers, `[layers]` each; the
    one of `deep_enough` where too little was asked to tell. How far apart prompts lie says less: it is largest where the model
    has read the instruction, and not yet made up its mind (docs/decisions/0003-which-layer.md)."""
    if np.isnan(order).any() or np.isnan(map_).any():
        return deep_enough(len(order))
    near = (order >= order.max() - PLATEAU) & (map_ >= map_.max() - PLATEAU)
    return int(np.flatnonzero(near)[0]) if near.any() else int((order + map_).argmax())


def deep_enough(layers: int) -> int:
    """A layer to look at before any is known to be better: order and map are steady from the middle on."""
    return min(round(DEPTH * layers), layers - 1)


def _spread(kept: Counted, projections: vectors.Floats, is_default: NDArray[np.bool_]) -> dict[str, Tensor]:
    """How responses lie on an axis, given their projections `[sample, layers]`, and the residual norm."""
    source, shown = kept.source, kept.cells.shown
    quantiles = [np.quantile(projections[m], np.linspace(0, 1, 101), axis=0) for m in (is_default, ~is_default)]
    on_default = projections[is_default]
    return {
        "residual_norm": _tensor(source.norms[shown].sum(0) / source.tokens[shown].sum()),
        "quantiles_default": _tensor(quantiles[0]),
        "quantiles_roles": _tensor(quantiles[1]),
        "default_moments": _tensor(np.stack([on_default.mean(0), on_default.std(0, ddof=min(1, len(on_default) - 1))])),
    }


def _passes(kept: Counted, hidden: int) -> list[slice]:
    """The layers, so many at a time as their sums fit the memory that they may take."""
    layers, cells, texts = kept.source.norms.shape[1], kept.cells, kept.source.by_instruction()
    size = max(len(c.count) + len(c.block_of) for c in (cells, texts) if c)
    per_pass = max(1, SUMS_MEMORY // (8 * size * hidden))
    return [slice(first, min(layers, first + per_pass)) for first in range(0, layers, per_pass)]


def variance_ratios(kept: Counted, layers: slice) -> vectors.Floats:
    """The mixed model's variance ratio at some layers, `[layers]`, from the sample."""
    source, some = kept.source, kept.sampled
    return mixed.variance_ratio(mixed.Moments.of(source.role[some], source.question[some], source.sample(some, layers)))


def estimate(kept: Counted, layer: int | None, seed: int, meta: dict[str, Any]) -> PersonaSpace:
    """The space of the responses that count; layer None picks it by separation on held-out questions."""
    source, cells = kept.source, kept.cells
    fit, splits = vectors.Fit(cells), reliability.split_fits(cells, SPLITS, seed)
    texts = source.by_instruction()
    text_splits = reliability.instruction_fits(cells, texts, BY_LAYER, seed) if texts else []
    by_layer: dict[str, list[vectors.Floats]] = {}
    effects, on_axis, held_out = [], [], []
    for some in _passes(kept, meta["model"]["hidden"]):
        ratios = variance_ratios(kept, some)
        sums = source.sums(cells, some)
        found = fit.effects(sums, ratios)
        fold, axes = vectors.fold_axes(cells, sums, FOLDS, seed, ratios)
        on, out = _project(kept, some, found[0] - found[1:].mean(0), axes, fold)
        effects.append(found)
        on_axis.append(on)
        held_out.append(out)
        figures = {
            "variance_ratio": ratios,
            **_split_half(splits[:BY_LAYER], _light(sums, cells), ratios, "split_half"),
        }
        if texts:
            del sums
            sums = source.sums_by_instruction(texts, some)
            figures |= _split_half(text_splits, _light(sums, texts), ratios, "split_half_by_instruction")
        for name, values in figures.items():
            by_layer.setdefault(name, []).append(values)
    vector = torch.cat(effects, 1)
    default, roles = vector[0], vector[1:]
    axis = default - roles.mean(0)
    projections = np.concatenate(on_axis, 1)
    by_fold = _separation(kept, np.concatenate(held_out, 1), fold)
    figures = {name: np.concatenate(values) for name, values in by_layer.items()}
    if layer is None and meta.get("reading") == PROMPT:
        wholes = (spearman_brown(figures[f"{n}_split_half"], figures["split_half_factor"]) for n in ("order", "map"))
        layer = layer_of_prompts(*wholes)
    chosen = vectors.pick_layer(by_fold) if layer is None else layer
    at_layer = source.sums(cells, slice(chosen, chosen + 1))
    ratio = float(figures["variance_ratio"][chosen])
    intervals = reliability.bootstrap(cells, at_layer[:, 0], axis[chosen].numpy(), BOOTSTRAPS, seed, ratio)
    products = reliability.Products.of(splits, at_layer, ratio, len(cells.shown) - 1)
    factor = float(figures["split_half_factor"][chosen])
    components, variance = principal_components(roles.float(), axis.float())
    without_noise, cosines = corrected.figures(fit, at_layer[:, 0], ratio, _some_of(kept, chosen, seed), products, seed)
    is_default = source.role[kept.sampled] == 0
    tensors = {
        "role_vectors": roles,
        "default_vector": default,
        "axis": axis,
        "counts": torch.from_numpy(cells.per_role()[1:]),
        "role_reliability": _tensor(spearman_brown(products.role_split_half(), factor)),
        "role_interval": _tensor(intervals.projection),
        "cosine_error": _tensor(products.cosine_error()),
        **({} if cosines is None else {"cosine_corrected": _tensor(cosines)}),
        **{name: _tensor(values) for name, values in figures.items()},
        "separation": _tensor(np.nanmean(by_fold, axis=0) if not np.isnan(by_fold).all() else by_fold[0]),
        "components": components,
        "variance": variance,
        **_spread(kept, projections, is_default),
    }
    meta = {
        **meta,
        "format": FORMAT,
        "layer": chosen,
        "layer_chosen": "auto" if layer is None else "given",
        "roles": list(cells.names[1:]),
        "left_out": kept.left_out,
        "n_default": int(cells.per_role()[0]),
        "n_kept": int(cells.per_role().sum()),
        "axis_pc1_interval": intervals.axis_pc1.tolist(),
        "role_interval": "pooled",
        "reliability_interval": products.intervals(factor, BOOTSTRAPS, seed),
        "corrected": without_noise,
        "histogram": _histogram(projections[:, chosen], is_default),
    }
    return PersonaSpace(meta, {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()})


def _some_of(kept: Counted, layer: int, seed: int) -> Sample:
    """What noise is learnt from: the sample at a layer, or as much of it as `NOISE_FROM` says."""
    source, which = kept.source, kept.sampled.copy()
    rng = np.random.default_rng(seed)
    for kind, most in zip((source.role == 0, source.role > 0), NOISE_FROM, strict=True):
        which[rng.permutation(np.flatnonzero(which & kind))[most:]] = False
    blocks = list(source.sample(which, slice(layer, layer + 1)))
    activations = torch.cat(blocks)[:, 0].double().numpy() if blocks else np.zeros((0, kept.source.norms.shape[1]))
    return Sample(source.role[which], source.question[which], activations)


def _light(sums: Tensor, cells: vectors.Cells) -> Tensor:
    """Sums in single precision for what only halves are compared by: half the time, and no vector is made of it. What all
    responses share is taken off first, since rounding would otherwise go by its size."""
    size, counts = len(cells.count), torch.from_numpy(np.concatenate([cells.count, cells.n.sum(0)])).double()
    mean = sums[:size].sum(0) / counts[:size].sum()
    light = torch.empty(sums.shape)
    for start in range(0, len(sums), 64):
        rows = slice(start, start + 64)
        light[rows] = torch.addcmul(sums[rows], counts[rows, None, None], mean[None], value=-1)
    return light


def _split_half(
    pairs: Sequence[reliability.Pair], sums: Tensor, ratios: vectors.Floats, name: str
) -> dict[str, vectors.Floats]:
    half = vars(reliability.split_half(pairs, sums, ratios))
    factor = half.pop("factor")
    return {**{f"{figure}_{name}": values for figure, values in half.items()}, f"{name}_factor": factor}


def _project(
    kept: Counted, layers: slice, axis: Tensor, axes: Tensor, fold: vectors.Ints
) -> tuple[vectors.Floats, vectors.Floats]:
    """Each sampled response's projection on the axis, and on the axis of the questions without its own, `[sample, layers]`."""
    unit = (axis / axis.norm(dim=-1, keepdim=True)).float()
    folds = (axes / axes.norm(dim=-1, keepdim=True)).float()
    mine = torch.from_numpy(_fold_of(kept, fold))
    on, held_out, at = [], [], 0
    for block in kept.source.sample(kept.sampled, layers):
        block = block.float()
        on.append(torch.einsum("nld,ld->nl", block, unit))
        own = torch.empty(block.shape[:2])
        of = mine[at : at + len(block)]
        for f in set(of.tolist()):
            own[of == f] = torch.einsum("nld,ld->nl", block[of == f], folds[f])
        held_out.append(own)
        at += len(block)
    return torch.cat(on).double().numpy(), torch.cat(held_out).double().numpy()


def _fold_of(kept: Counted, fold: vectors.Ints) -> vectors.Ints:
    """Which fold of the questions each sampled response is in."""
    found: vectors.Ints = fold[kept.cells.block_of[kept.source.question[kept.sampled]]]
    return found


def _separation(kept: Counted, held_out: vectors.Floats, fold: vectors.Ints) -> vectors.Floats:
    source, mine = kept.source, _fold_of(kept, fold)
    question, is_default = source.question[kept.sampled], source.role[kept.sampled] == 0
    rows = [mine == f for f in range(int(fold.max()) + 1)]
    return np.stack([vectors.separation(held_out[r], is_default[r], question[r]) for r in rows])


def _histogram(projections: vectors.Floats, is_default: np.ndarray) -> dict[str, list[float]]:
    edges = np.histogram_bin_edges(projections, bins=60)
    counts = {n: np.histogram(projections[m], edges)[0] for n, m in (("default", is_default), ("roles", ~is_default))}
    return {"edges": edges.tolist(), **{n: c.tolist() for n, c in counts.items()}}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
