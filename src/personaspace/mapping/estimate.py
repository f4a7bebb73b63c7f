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
from personaspace.space import PersonaSpace, layout
from personaspace.space.readings import PROMPT
from personaspace.stats import corrected, mixed, reliability, vectors
from personaspace.stats.components import principal_components
from personaspace.stats.forecast import spearman_brown
from personaspace.stats.noise import Sample

SPLITS, BY_LAYER, FOLDS, BOOTSTRAPS = 20, 10, 10, 100
JACKKNIFE_GROUPS, JACKKNIFE_SPLITS = 10, 5
DEPTH = 2 / 3
PLATEAU = 0.02
"""Reliabilities that differ by less are the same to who reads the map."""
NOISE_FROM = 512, 2048
"""Responses of the default and of all roles together that noise is learnt from: more say little more of it."""

SUMS_MEMORY = 512 << 20
"""Bytes that the sums by cell may take; layers are worked through in as many passes as that needs."""


@dataclass(frozen=True)
class IncludedResponses:
    """A source, the cells of the roles that have enough responses, and which of its sample are theirs, `[sample]`.

    counts: responses that count, by role, the default among them, also of those left out.
    """

    source: Source
    cells: vectors.Cells
    sampled: NDArray[np.bool_]
    counts: dict[str, int]
    left_out: dict[str, str]


def included_responses(
    source: Source, roles: Sequence[str], requested: Mapping[str, int], min_responses: int | None
) -> IncludedResponses:
    """Which roles have enough responses that count; roles: all of the catalogue's, in order.

    Raises `DesignError` where the default has none or fewer than two roles are left.
    """
    names = [DEFAULT, *roles]
    counts = dict(zip(names, source.n.sum(1).tolist(), strict=True))
    left_out = {}
    for name in roles:
        needed = max(1, min_responses or -(-requested.get(name, 0) // 2))
        if not requested.get(name, 0):
            continue  # an aim for the axis alone is content with a sample of roles
        if counts[name] < needed:
            left_out[name] = f"{counts[name]} of {requested.get(name, 0)} responses kept, {needed} needed"
    included_rows = [
        k for k, name in enumerate(names) if name not in left_out and (requested.get(name, 0) or name == DEFAULT)
    ]
    if not counts[DEFAULT] or len(included_rows) < 3:
        raise DesignError(
            f"{counts[DEFAULT]} responses of the default and {len(included_rows) - 1} roles with enough responses are left; "
            "expected one and two at least (a lower min_responses or another judge keeps more)"
        )
    cells = vectors.Cells.counted([names[k] for k in included_rows], source.n, source.block_of, included_rows)
    return IncludedResponses(source, cells, np.isin(source.role, included_rows), counts, left_out)


def reliabilities(
    included: IncludedResponses, layer: int, seed: int, names: Sequence[str] = ("axis",)
) -> dict[str, float]:
    """The axis' reliability at one layer, and the others of `names` (`order`, `map`): what `until` looks at between rounds. 0
    where the data do not tell yet."""
    layers = slice(layer, layer + 1)
    sums, ratios = included.source.sums(included.cells, layers), variance_ratios(included, layers)
    halves = reliability.split_half(reliability.split_fits(included.cells, SPLITS, seed), sums, ratios)
    values = {"axis": spearman_brown(halves.axis)}
    values |= {name: spearman_brown(getattr(halves, name), halves.factor) for name in names if name != "axis"}
    return {name: float(np.nan_to_num(by_layer[0])) for name, by_layer in values.items()}


def unit_axis(included: IncludedResponses, hidden: int) -> Tensor:
    """The axis at every layer as unit vectors, `[layers, hidden]`, and nothing else."""
    fit = vectors.Fit(included.cells)
    parts = [
        fit.axis(included.source.sums(included.cells, layers), variance_ratios(included, layers))
        for layers in _passes(included, hidden)
    ]
    axis = torch.cat(parts)
    unit: Tensor = (axis / axis.norm(dim=-1, keepdim=True)).float()
    return unit


def on_replies(
    included: IncludedResponses, axis: Tensor, layer: int
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """What holding a model goes by, of its replies whichever reading found the axis `[layers, hidden]`: how they lie on it, and
    the residual norm; and the histogram at a layer."""
    projections = _project_by_layer(included, axis)
    is_default = included.source.role[included.sampled] == 0
    spread = _spread(included, projections, is_default) | default_replies(included, layer)
    return spread, _histogram(projections[:, layer], is_default)


def default_replies(included: IncludedResponses, layer: int) -> dict[str, Tensor]:
    """How the sampled replies of the default lie about their mean at a layer, so that along any direction their mean and
    deviation are known: `reply_mean [hidden]`, `reply_factor [k, hidden]` and `reply_rest` (see `space.layout.fewer`)."""
    blocks = [block[:, 0] for block in included.source.sample(included.sampled, slice(layer, layer + 1))]
    of_default = torch.cat(blocks)[torch.from_numpy(included.source.role[included.sampled] == 0)].double()
    if len(of_default) < 2:
        return {}
    mean = of_default.mean(0)
    _, deviations, directions = torch.linalg.svd(
        (of_default - mean) / (len(of_default) - 1) ** 0.5, full_matrices=False
    )
    # Rank is one less than there are replies: the last direction is rounding.
    rank = min(len(of_default) - 1, len(directions))
    factor = (deviations[:rank, None] * directions[:rank]).float()
    return {"reply_mean": mean.float(), **layout.fewer(factor, torch.zeros(1), layout.REPLIES_KEPT)}


def own_role_near(included: IncludedResponses, space: PersonaSpace, k: int = 5) -> dict[str, float]:
    """How much a reply's nearest roles say: own, the share of roles' replies whose own role is among the k nearest (all
    but one of the roles at most) at the space's layer, beside what chance gives. The space is one that they had no say in."""
    k = min(k, len(space.roles) - 1)  # all of them would say nothing
    names = dict(zip(included.cells.shown, included.cells.names, strict=True))
    blocks = list(included.source.sample(included.sampled, slice(space.layer, space.layer + 1)))
    hits = [
        names[role] in dict(space.nearest(activation, k))
        for role, activation in zip(
            included.source.role[included.sampled], torch.cat(blocks)[:, 0].float(), strict=True
        )
        if role > 0
    ]
    return {
        "k": k,
        "own": float(np.mean(hits)) if hits else float("nan"),
        "chance": k / len(space.roles),
        "n": len(hits),
    }


def layer_of_replies(included: IncludedResponses, axis: Tensor, seed: int) -> int:
    """The layer at which replies are told apart best along an axis `[layers, hidden]` that was found without them: the
    default's from roles', by folds of the questions as in `estimate`, and the first within a standard error of the best."""
    fold = vectors.blocks_of(included.cells.blocks, FOLDS, seed)
    return vectors.pick_layer(_separation(included, _project_by_layer(included, axis), fold))


def _project_by_layer(included: IncludedResponses, axis: Tensor) -> vectors.Floats:
    """Each sampled response's projection on an axis `[layers, hidden]` at its own layer, `[sample, layers]`."""
    unit, projections = axis / axis.norm(dim=-1, keepdim=True), []
    for layers in _passes(included, axis.shape[1]):
        blocks = included.source.sample(included.sampled, layers)
        projections.append(torch.cat([torch.einsum("nld,ld->nl", block.float(), unit[layers]) for block in blocks]))
    joined: vectors.Floats = torch.cat(projections, 1).double().numpy()
    return joined


def layer_of_prompts(order: vectors.Floats, map_: vectors.Floats) -> int:
    """The first layer at which the order and the map are both about as reliable as at their best layers, `[layers]` each; the
    one of `deep_enough` where too little was asked to tell. How far apart prompts lie says less: it is largest where the model
    has read the instruction, and not yet made up its mind (docs/decisions/0003-which-layer.md)."""
    if np.isnan(order).any() or np.isnan(map_).any():
        return deep_enough(len(order))
    at_plateau = (order >= order.max() - PLATEAU) & (map_ >= map_.max() - PLATEAU)
    return int(np.flatnonzero(at_plateau)[0]) if at_plateau.any() else int((order + map_).argmax())


def deep_enough(layers: int) -> int:
    """A layer to look at before any is known to be better: order and map are steady from the middle on."""
    return min(round(DEPTH * layers), layers - 1)


def _spread(
    included: IncludedResponses, projections: vectors.Floats, is_default: NDArray[np.bool_]
) -> dict[str, Tensor]:
    """How responses lie on an axis, given their projections `[sample, layers]`, and the residual norm."""
    source, shown = included.source, included.cells.shown
    quantiles = [np.quantile(projections[m], np.linspace(0, 1, 101), axis=0) for m in (is_default, ~is_default)]
    on_default = projections[is_default]
    return {
        "residual_norm": _tensor(source.norms[shown].sum(0) / source.tokens[shown].sum()),
        "quantiles_default": _tensor(quantiles[0]),
        "quantiles_roles": _tensor(quantiles[1]),
        "default_moments": _tensor(np.stack([on_default.mean(0), on_default.std(0, ddof=min(1, len(on_default) - 1))])),
    }


def _passes(included: IncludedResponses, hidden: int) -> list[slice]:
    """The layers, so many at a time as their sums fit the memory that they may take."""
    layers, cells, texts = included.source.norms.shape[1], included.cells, included.source.by_instruction()
    size = max(len(c.count) + len(c.block_of) for c in (cells, texts) if c)
    per_pass = max(1, SUMS_MEMORY // (8 * size * hidden))
    return [slice(first, min(layers, first + per_pass)) for first in range(0, layers, per_pass)]


def variance_ratios(included: IncludedResponses, layers: slice) -> vectors.Floats:
    """The mixed model's variance ratio at some layers, `[layers]`, from the sample."""
    source, sampled = included.source, included.sampled
    return mixed.variance_ratio(
        mixed.Moments.of(source.role[sampled], source.question[sampled], source.sample(sampled, layers))
    )


def estimate(included: IncludedResponses, layer: int | None, seed: int, meta: dict[str, Any]) -> PersonaSpace:
    """The space of the responses that count; layer None picks it by separation on held-out questions. Raises `DesignError`
    where all activations are alike."""
    source, cells = included.source, included.cells
    # 1) The design, which needs no activation: the model of all responses, and of halves by question and by instruction.
    fit, splits = vectors.Fit(cells), reliability.split_fits(cells, SPLITS, seed)
    texts = source.by_instruction()
    text_splits = reliability.instruction_fits(cells, texts, BY_LAYER, seed) if texts else []
    # 2) Role vectors and what halves agree on, so many layers at a time as their sums fit the memory.
    by_layer: dict[str, list[vectors.Floats]] = {}
    effects, on_axis, held_out = [], [], []
    for layers in _passes(included, meta["model"]["hidden"]):
        ratios = variance_ratios(included, layers)
        sums = source.sums(cells, layers)
        pass_effects = fit.effects(sums, ratios)
        fold, axes = vectors.fold_axes(cells, sums, FOLDS, seed, ratios)
        projected, projected_held_out = _project(
            included, layers, pass_effects[0] - pass_effects[1:].mean(0), axes, fold
        )
        effects.append(pass_effects)
        on_axis.append(projected)
        held_out.append(projected_held_out)
        figures = {
            "variance_ratio": ratios,
            **_split_half(splits[:BY_LAYER], _light(sums, cells), ratios, "split_half"),
        }
        if texts:
            del sums  # the two are as large as each other, and fit the memory one at a time
            sums = source.sums_by_instruction(texts, layers)
            figures |= _split_half(text_splits, _light(sums, texts), ratios, "split_half_by_instruction")
        for name, values in figures.items():
            by_layer.setdefault(name, []).append(values)
    vector = torch.cat(effects, 1)
    default, roles = vector[0], vector[1:]
    axis = default - roles.mean(0)
    if not bool(torch.any(axis)) or not bool(torch.isfinite(axis).all()):
        raise DesignError(
            "the activations of default and roles are all alike, or not all numbers: there is no axis; is it the model's own "
            "residual stream that the engine reads?"
        )
    projections = np.concatenate(on_axis, 1)
    by_fold = _separation(included, np.concatenate(held_out, 1), fold)
    figures = {name: np.concatenate(values) for name, values in by_layer.items()}
    # 3) The layer: prompts' by reliability, replies' by how far they lie apart on questions that the axis did not see.
    asked_layer = layer
    if layer is None and meta.get("reading") == PROMPT:
        whole_reliabilities = (
            spearman_brown(figures[f"{name}_split_half"], figures["split_half_factor"]) for name in ("order", "map")
        )
        layer = layer_of_prompts(*whole_reliabilities)
    chosen = vectors.pick_layer(by_fold) if layer is None else layer
    # 4) What takes longer, at that layer alone: intervals, products across halves, figures with the noise taken out.
    at_layer = source.sums(cells, slice(chosen, chosen + 1))
    ratio = float(figures["variance_ratio"][chosen])
    intervals = reliability.bootstrap(cells, at_layer[:, 0], axis[chosen].numpy(), BOOTSTRAPS, seed, ratio)
    products = reliability.Products.of(splits, at_layer, ratio, len(cells.shown) - 1)
    left_out = [
        reliability.Products.of(pairs, at_layer, ratio)
        for pairs in reliability.without_questions(splits[:JACKKNIFE_SPLITS], JACKKNIFE_GROUPS, seed)
    ]
    factor = float(figures["split_half_factor"][chosen])
    components, variance = principal_components(roles.float(), axis.float())
    # Noise is learnt from the sample, or as much of it as `NOISE_FROM` says.
    learnt_from, rng = included.sampled.copy(), np.random.default_rng(seed)
    for in_group, limit in zip((source.role == 0, source.role > 0), NOISE_FROM, strict=True):
        learnt_from[rng.permutation(np.flatnonzero(learnt_from & in_group))[limit:]] = False
    blocks = list(source.sample(learnt_from, slice(chosen, chosen + 1)))
    activations = torch.cat(blocks)[:, 0].double().numpy() if blocks else np.zeros((0, axis.shape[1]))
    noise_sample = Sample(source.role[learnt_from], source.question[learnt_from], activations)
    without_noise, cosines = corrected.figures(fit, at_layer[:, 0], ratio, noise_sample, products, seed)
    is_default = source.role[included.sampled] == 0
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
        **_spread(included, projections, is_default),
        **default_replies(included, chosen),
    }
    meta = {
        **meta,
        "format": layout.FORMAT,
        "layer": chosen,
        "layer_chosen": "auto" if asked_layer is None else "given",
        "roles": list(cells.names[1:]),
        "left_out": included.left_out,
        "n_default": int(cells.per_role()[0]),
        "n_kept": int(cells.per_role().sum()),
        "axis_pc1_interval": intervals.axis_pc1.tolist(),
        "role_interval": "pooled",
        "reliability_interval": products.intervals(factor, BOOTSTRAPS, seed, left_out),
        "corrected": without_noise,
        "histogram": _histogram(projections[:, chosen], is_default),
    }
    return PersonaSpace(meta, {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()})


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
    figures = vars(reliability.split_half(pairs, sums, ratios))
    factor = figures.pop("factor")
    return {**{f"{figure}_{name}": values for figure, values in figures.items()}, f"{name}_factor": factor}


def _project(
    included: IncludedResponses, layers: slice, axis: Tensor, axes: Tensor, fold: vectors.Ints
) -> tuple[vectors.Floats, vectors.Floats]:
    """Each sampled response's projection on the axis, and on the axis of the questions without its own, `[sample, layers]`."""
    unit = (axis / axis.norm(dim=-1, keepdim=True)).float()
    folds = (axes / axes.norm(dim=-1, keepdim=True)).float()
    fold_of_row = torch.from_numpy(_fold_of(included, fold))
    on_axis, held_out, start = [], [], 0
    for block in included.source.sample(included.sampled, layers):
        block = block.float()
        on_axis.append(torch.einsum("nld,ld->nl", block, unit))
        on_own_fold = torch.empty(block.shape[:2])
        block_folds = fold_of_row[start : start + len(block)]
        for k in set(block_folds.tolist()):
            on_own_fold[block_folds == k] = torch.einsum("nld,ld->nl", block[block_folds == k], folds[k])
        held_out.append(on_own_fold)
        start += len(block)
    return torch.cat(on_axis).double().numpy(), torch.cat(held_out).double().numpy()


def _fold_of(included: IncludedResponses, fold: vectors.Ints) -> vectors.Ints:
    """Which fold of the questions each sampled response is in."""
    folds: vectors.Ints = fold[included.cells.block_of[included.source.question[included.sampled]]]
    return folds


def _separation(included: IncludedResponses, held_out: vectors.Floats, fold: vectors.Ints) -> vectors.Floats:
    source, fold_of_row = included.source, _fold_of(included, fold)
    question, is_default = source.question[included.sampled], source.role[included.sampled] == 0
    rows = [fold_of_row == k for k in range(int(fold.max()) + 1)]
    return np.stack([vectors.separation(held_out[in_fold], is_default[in_fold], question[in_fold]) for in_fold in rows])


def _histogram(projections: vectors.Floats, is_default: np.ndarray) -> dict[str, list[float]]:
    edges = np.histogram_bin_edges(projections, bins=60)
    counts = {n: np.histogram(projections[m], edges)[0] for n, m in (("default", is_default), ("roles", ~is_default))}
    return {"edges": edges.tolist(), **{n: c.tolist() for n, c in counts.items()}}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
