"""How sure a map is against what it cost: a run's own prompts and replies, some of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from personaspace.catalog import DEFAULT
from personaspace.engines import Engine
from personaspace.engines.prefix import shared_prefix_length
from personaspace.errors import DesignError, UsageError
from personaspace.mapping import estimate
from personaspace.mapping.sums import FromActivations, Responses
from personaspace.report.page import FAR, NEAR, SOFT, Block, write_figures
from personaspace.runs import Run, Shards
from personaspace.space import PersonaSpace
from personaspace.space.readings import PROMPT, REPLY
from personaspace.stats import reliability
from personaspace.stats.forecast import NAMES, spearman_brown

EACH = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20)
"""Readings a role at which the curves are looked at."""

SPLITS = 10

WAYS = {
    "study": "the study's allocation: replies, as many of the default as of a role, plain means",
    "reply": "replies in rotation, the default's share as in the run, questions as random effects",
    "prompt": "prompts in rotation, the default's share as in the run, questions as random effects",
}


@dataclass(frozen=True)
class Point:
    """What so many readings a role are worth: axis, order and map reliability. tokens: that the model computed, shared
    prefixes once; seconds: of the run's own, as a share of its readings."""

    way: str
    per_role: int
    default: int
    tokens: int
    seconds: float
    axis: float | None
    order: float | None
    map: float | None


def curves(run: Run, engine: Engine, layer: int | None = None, seed: int = 0) -> list[Point]:
    """Points of each way to read, from a run that kept its activations. Raises `UsageError` where it did not."""
    space, manifest = PersonaSpace.load(run.space_file), run.manifest()
    layer_index = space.layer if layer is None else layer
    points = []
    for way in WAYS:
        reading = PROMPT if way == "prompt" else REPLY
        shards: Shards = run.onsets if reading == PROMPT else run
        if reading not in space.readings:
            continue
        if not shards.whole():
            raise UsageError(f"{run.folder}: its activations were let go; a run of --keep all has them")
        subsampled = _SubsampledReading(shards, manifest["config"]["catalog"]["roles"], engine, seed)
        seconds = manifest.get("onset_seconds" if reading == PROMPT else "seconds", 0.0)
        points += [p for each in EACH if (p := subsampled.point(way, each, layer_index, seconds)) is not None]
    return points


class _SubsampledReading:
    """One reading's responses, of which the first so many of each role are estimated from."""

    def __init__(self, shards: Shards, roles: Sequence[str], engine: Engine, seed: int) -> None:
        self.shards, self.roles, self.seed = shards, list(roles), seed
        shard_numbers = shards.done()
        self.responses = Responses.read(shards, shard_numbers, self.roles, None, seed)
        columns = ["role", "index", "system", "user", "tokens", "finish_reason"]
        rows = {k: shards.read(k, columns).to_pylist() for k in shard_numbers}
        reading_rows = [
            rows[s][r] for s, r in zip(self.responses.shard.tolist(), self.responses.row.tolist(), strict=True)
        ]
        self.index = np.array([row["index"] for row in reading_rows])
        self.ids = [
            engine.chat.prompt_ids(
                ([{"role": "system", "content": row["system"]}] if row["system"] else [])
                + [{"role": "user", "content": row["user"]}]
            )
            for row in reading_rows
        ]
        self.generated = np.array([0 if row["finish_reason"] == "onset" else row["tokens"] for row in reading_rows])

    def point(self, way: str, per_role: int, layer: int, seconds: float) -> Point | None:
        is_default = self.responses.role == 0
        most_per_role = int(self.index[~is_default].max()) + 1
        if per_role > most_per_role:
            return None
        default = per_role if way == "study" else max(2, round(int(is_default.sum()) * per_role / most_per_role))
        chosen = np.where(is_default, self.index < default, self.index < per_role)
        responses = self.responses.where(chosen)
        source = FromActivations(
            self.shards, responses, 1 + len(self.roles), int(self.responses.question.max()) + 1, None
        )
        # A role with a single reply counts: what that is worth is just what is looked at.
        counts = dict.fromkeys((DEFAULT, *self.roles), 1)
        try:
            included = estimate.included_responses(source, self.roles, counts, 1)
        except DesignError:
            return None
        layers = slice(layer, layer + 1)
        sums = source.sums(included.cells, layers)
        # Infinite: questions count as nothing, as in the study's plain means.
        ratios = np.array([np.inf]) if way == "study" else estimate.variance_ratios(included, layers)
        halves = reliability.split_half(reliability.split_fits(included.cells, SPLITS, self.seed), sums, ratios)
        whole_reliabilities = [spearman_brown(halves.axis)]
        whole_reliabilities += [spearman_brown(getattr(halves, name), halves.factor) for name in NAMES[1:]]
        axis, order, map_ = (None if np.isnan(values[0]) else float(values[0]) for values in whole_reliabilities)
        # In order, a prompt's longest shared beginning is the one before it.
        prompts = sorted(self.ids[k] for k in np.flatnonzero(chosen))
        computed = sum(
            len(tokens_of_prompt) - shared_prefix_length(before, tokens_of_prompt)
            for before, tokens_of_prompt in zip([[], *prompts[:-1]], prompts, strict=True)
        )
        tokens = computed + int(self.generated[chosen].sum())
        return Point(way, per_role, default, tokens, seconds * float(chosen.mean()), axis, order, map_)


COLOUR = {"study": SOFT, "reply": FAR, "prompt": NEAR}


def write_page(path: str | Path, model: str, layer: int, points: Sequence[Point]) -> Path:
    """Draws the three reliabilities against what was computed, as an HTML page."""
    blocks = []
    for name in NAMES:
        data = []
        for way, words in WAYS.items():
            points_of_way = [p for p in points if p.way == way and getattr(p, name) is not None]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": words.split(",")[0],
                    "x": [p.tokens for p in points_of_way],
                    "y": [getattr(p, name) for p in points_of_way],
                    "text": [
                        f"{p.per_role} a role, {p.default} of the default, {p.seconds:.0f} s" for p in points_of_way
                    ],
                    "hovertemplate": "%{text}<br>%{x:,} tokens: %{y:.2f}<extra></extra>",
                    "line": {"color": COLOUR[way], "width": 3},
                }
            )
        layout = {
            "xaxis": {"title": {"text": "tokens computed"}, "type": "log"},
            "yaxis": {"title": {"text": f"reliability of the {name}"}, "range": [0, 1.02]},
        }
        blocks.append(Block(f"The {name}", "", {"data": data, "layout": layout}, 340))
    head = ["way", "a role", "default", "tokens", "seconds", *NAMES]
    blocks.append(Block("All points", head=head, rows=rows(points)))
    lead = f"How sure a map of {model} is at layer {layer}, against the tokens that were computed for it. " + " ".join(
        f"{words[0].upper()}{words[1:]}." for words in WAYS.values()
    )
    return write_figures(path, "What it costs to be sure", lead, blocks)


def rows(points: Sequence[Point]) -> list[list[str]]:
    """The points as a table's rows, for people."""
    return [
        [p.way, str(p.per_role), str(p.default), f"{p.tokens:,}", f"{p.seconds:.0f}"]
        + ["–" if (value := getattr(p, name)) is None else f"{value:.2f}" for name in NAMES]
        for p in points
    ]
