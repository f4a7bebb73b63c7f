"""From a run's folder to a persona space: which responses count, and every figure; it writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personaspace import vectors
from personaspace.catalog import DEFAULT
from personaspace.errors import DesignError
from personaspace.judge import KEPT
from personaspace.space import FORMAT, PersonaSpace, principal_components
from personaspace.store import Run

SPLITS, FOLDS, BOOTSTRAPS = 20, 10, 200
SUMS_MEMORY = 512 << 20
"""Bytes that the sums by cell may take; layers are worked through in as many passes as that needs."""


@dataclass(frozen=True)
class Kept:
    """The responses that count: per shard, the rows in it; over all of them, their cells and lengths."""

    rows: dict[int, np.ndarray]
    cells: vectors.Cells
    tokens: np.ndarray
    counts: dict[str, int]  # kept, by role, the default among them, also those left out
    left_out: dict[str, str]

    def blocks(self, run: Run, layers: slice) -> Iterator[Tensor]:
        """Activations `[n, layers, hidden]`, a shard at a time."""
        for shard, rows in self.rows.items():
            yield run.tensors(shard, "activations", layers)[torch.from_numpy(rows)]


def kept_responses(
    run: Run,
    shards: Sequence[int],
    roles: Sequence[str],
    asked: Mapping[str, int],
    scores: Mapping[tuple[str, int], tuple[int, float]] | None,
    min_responses: int | None,
) -> Kept:
    """Which responses count: not empty, score 3 where judged, and of roles with enough of them.

    Raises `DesignError` where the default has none or fewer than two roles are left.
    """
    place = {DEFAULT: 0, **{name: k + 1 for k, name in enumerate(roles)}}
    found = []
    for shard in shards:
        table = run.read(shard, ["role", "index", "question", "tokens"]).to_pydict()
        for row, (role, index, question, tokens) in enumerate(zip(*table.values(), strict=True)):
            good = scores is None or role == DEFAULT or scores.get((role, index), (None,))[0] == KEPT
            if good and tokens:
                found.append((shard, row, place[role], question, tokens))
    data = np.array(found, dtype=np.int64).reshape(-1, 5)
    n = np.bincount(data[:, 2], minlength=len(place))
    counts = {name: int(n[k]) for name, k in place.items()}
    left_out = {}
    for name in roles:
        least = min_responses or -(-asked.get(name, 0) // 2)
        if counts[name] < max(1, least):
            left_out[name] = f"{counts[name]} of {asked.get(name, 0)} responses kept, {max(1, least)} needed"
    names = [DEFAULT, *(r for r in roles if r not in left_out)]
    if not counts[DEFAULT] or len(names) < 3:
        raise DesignError(
            f"{counts[DEFAULT]} responses of the default and {len(names) - 1} roles with enough responses are left; "
            "expected one and two at least (a lower --min-responses or another --judge keeps more)"
        )
    new = {place[name]: k for k, name in enumerate(names)}
    data = data[np.isin(data[:, 2], list(new))]
    role = np.array([new[r] for r in data[:, 2].tolist()])
    rows = {s: data[data[:, 0] == s, 1] for s in dict.fromkeys(data[:, 0].tolist())}
    return Kept(rows, vectors.Cells.build(names, role, data[:, 3]), data[:, 4], counts, left_out)


def axis_reliability(run: Run, kept: Kept, layer: int, seed: int) -> float:
    """The axis' reliability at one layer: what `--until` looks at between rounds."""
    sums = vectors.cell_sums(kept.cells, kept.blocks(run, slice(layer, layer + 1)))
    half = vectors.axis_split_half(sums, vectors.split_operators(kept.cells, SPLITS, seed))
    return float(vectors.spearman_brown(half)[0])


def estimate(run: Run, kept: Kept, layer: int | None, seed: int, meta: dict[str, Any]) -> PersonaSpace:
    """The space of a run's kept responses; layer None picks it by separation on held-out questions."""
    cells = kept.cells
    layers, hidden = meta["model"]["layers"], meta["model"]["hidden"]
    operator = vectors.role_operator(cells)
    splits = vectors.split_operators(cells, SPLITS, seed)
    per_pass = max(1, SUMS_MEMORY // (8 * len(cells.count) * hidden))
    effects, axes_by_fold, split_half = [], [], []
    for first in range(0, layers, per_pass):
        sums = vectors.cell_sums(cells, kept.blocks(run, slice(first, min(layers, first + per_pass))))
        effects.append((torch.from_numpy(operator) @ sums.flatten(1)).view(-1, *sums.shape[1:]))
        fold, axes = vectors.fold_axes(cells, sums, FOLDS, seed)
        axes_by_fold.append(axes)
        split_half.append(vectors.axis_split_half(sums, splits))
    vector = torch.cat(effects, 1)
    default, roles = vector[0], vector[1:]
    axis = default - roles.mean(0)
    projections, held_out, norm = _project(run, kept, axis, torch.cat(axes_by_fold, 1), fold)
    by_fold = _separation(cells, held_out, fold)
    chosen = vectors.pick_layer(by_fold) if layer is None else layer
    at_layer = vectors.cell_sums(cells, kept.blocks(run, slice(chosen, chosen + 1)))[:, 0]
    intervals = vectors.bootstrap(cells, at_layer, axis[chosen].numpy(), BOOTSTRAPS, seed)
    components, variance = principal_components(roles.float(), axis.float())
    is_default = cells.role[cells.of] == 0
    quantiles = [np.quantile(projections[m], np.linspace(0, 1, 101), axis=0) for m in (is_default, ~is_default)]
    on_default = projections[is_default]
    tensors = {
        "role_vectors": roles,
        "default_vector": default,
        "axis": axis,
        "counts": torch.from_numpy(cells.per_role()[1:]),
        "role_reliability": _tensor(
            vectors.spearman_brown(vectors.role_split_half(at_layer, splits, len(cells.names) - 1))
        ),
        "role_interval": _tensor(intervals.projection),
        "axis_split_half": _tensor(np.concatenate(split_half)),
        "separation": _tensor(np.nanmean(by_fold, axis=0) if not np.isnan(by_fold).all() else by_fold[0]),
        "components": components,
        "variance": variance,
        "residual_norm": norm,
        "quantiles_default": _tensor(quantiles[0]),
        "quantiles_roles": _tensor(quantiles[1]),
        "default_moments": _tensor(np.stack([on_default.mean(0), on_default.std(0, ddof=min(1, len(on_default) - 1))])),
    }
    meta = {
        **meta,
        "format": FORMAT,
        "layer": chosen,
        "layer_chosen": "auto" if layer is None else "given",
        "roles": list(cells.names[1:]),
        "left_out": kept.left_out,
        "n_default": int(cells.per_role()[0]),
        "n_kept": len(cells.of),
        "axis_pc1_interval": intervals.axis_pc1.tolist(),
        "histogram": _histogram(projections[:, chosen], is_default),
    }
    return PersonaSpace(meta, {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()})


def _project(
    run: Run, kept: Kept, axis: Tensor, axes: Tensor, fold: vectors.Ints
) -> tuple[vectors.Floats, vectors.Floats, Tensor]:
    """Each response's projection on the axis and on the axis of the questions without its own, `[responses, layers]`,
    and the mean residual norm of a token `[layers]`."""
    unit = (axis / axis.norm(dim=-1, keepdim=True)).float()
    folds = (axes / axes.norm(dim=-1, keepdim=True)).float()
    on, held_out, norms, at = [], [], torch.zeros(axis.shape[0], dtype=torch.float64), 0
    for shard, rows in kept.rows.items():
        block = run.tensors(shard, "activations")[torch.from_numpy(rows)].float()
        index = slice(at, at + len(rows))
        question = kept.cells.question[kept.cells.of[index]]
        on.append(torch.einsum("nld,ld->nl", block, unit))
        own = torch.empty(len(rows), axis.shape[0])
        for f in set(fold[question].tolist()):
            rows_of = torch.from_numpy(fold[question] == f)
            own[rows_of] = torch.einsum("nld,ld->nl", block[rows_of], folds[f])
        held_out.append(own)
        tokens = torch.from_numpy(kept.tokens[index]).double()
        norms += tokens @ run.tensors(shard, "norms")[torch.from_numpy(rows)].double()
        at += len(rows)
    return torch.cat(on).double().numpy(), torch.cat(held_out).double().numpy(), norms / float(kept.tokens.sum())


def _separation(cells: vectors.Cells, held_out: vectors.Floats, fold: vectors.Ints) -> vectors.Floats:
    question, is_default = cells.question[cells.of], cells.role[cells.of] == 0
    rows = [fold[question] == f for f in range(int(fold.max()) + 1)]
    return np.stack([vectors.separation(held_out[r], is_default[r], question[r]) for r in rows])


def _histogram(projections: vectors.Floats, is_default: np.ndarray) -> dict[str, list[float]]:
    edges = np.histogram_bin_edges(projections, bins=60)
    counts = {n: np.histogram(projections[m], edges)[0] for n, m in (("default", is_default), ("roles", ~is_default))}
    return {"edges": edges.tolist(), **{n: c.tolist() for n, c in counts.items()}}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
