"""From a run's replies to caps: how tokens' projections spread, and floors that are named by what they are.

It asks nothing new of the model: replies that were given are replayed (the paper's section on activation capping).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personaspace.catalog import DEFAULT
from personaspace.engines import Engine, Span, Turn
from personaspace.engines.prompts import Message
from personaspace.engines.thoughts import Part, ReplySplitter
from personaspace.errors import DesignError, UsageError
from personaspace.runs import Run
from personaspace.space import PersonaSpace

PERCENTILES = (1, 25, 50, 75)
KINDS = ("default", "all")
LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512)
"""Beginnings of replies, in tokens, of which the mean projection is kept: what an alert rule is set from."""

LEAST = 16
"""Replies of the default, and of roles, without which percentiles would say nothing."""

A_ROLE = 4
"""Replies of a role that are replayed, at most."""

CHUNK = 32
"""Replies that are replayed together, at most."""

EACH = 1 << 30
"""Bytes of every token's activations that are held at once: of a model of 80 layers, one reply's."""

ReplyPlace = tuple[int, int]
"""Where a reply stands in a run: its shard, and its row there."""


@dataclass(frozen=True)
class RunReply:
    """A reply of a run: the role that gave it, the messages it answers, its token ids, and the answer's text."""

    role: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    text: str

    def span(self, prompt_ids: Sequence[int], splitter: ReplySplitter | None = None, part: Part = "answer") -> Span:
        """The whole conversation as token ids, with a part of the reply marked, where a splitter tells answer from thoughts."""
        start = len(prompt_ids)
        a, b = 0, len(self.token_ids)
        if splitter:
            a, b = splitter.follow(self.token_ids).range_of(part, b)
        return Span((*prompt_ids, *self.token_ids), ((start + a, start + b),))


@dataclass(frozen=True)
class ReplySample:
    """Replies drawn from a run: some of the default's, and a few of each of many roles; others of the default are held out."""

    default: tuple[RunReply, ...]
    roles: tuple[RunReply, ...]
    held_out: tuple[RunReply, ...]


def draw_sample(run: Run, *, default: int = 240, roles: int = 192, held_out: int = 96, seed: int = 0) -> ReplySample:
    """Draws replies from a run: `roles` of roles', at most `A_ROLE` of each, so that many roles speak. Raises `DesignError`
    where it holds too few, saying how many it takes.

    >>> sample = draw_sample(Run("runs/smollm2"))
    >>> space = calibrate(engine, space, sample, default_range(engine.info.layers))
    """
    rng = np.random.default_rng(seed)
    # Drawn are places: a run may hold more replies than memory does.
    by_role: dict[str, list[ReplyPlace]] = {}
    for shard in run.done():
        columns = run.read(shard, ["role", "tokens"]).to_pydict()
        for row, (role, tokens) in enumerate(zip(columns["role"], columns["tokens"], strict=True)):
            if tokens:
                by_role.setdefault(role, []).append((shard, row))
    default_replies = by_role.pop(DEFAULT, [])
    role_replies: list[ReplyPlace] = []
    for name in rng.permutation(sorted(by_role)).tolist():
        of_this_role = by_role[name]
        role_replies += [of_this_role[k] for k in sorted(rng.permutation(len(of_this_role))[:A_ROLE].tolist())]
        if len(role_replies) >= roles:
            break
    if len(default_replies) < 2 * LEAST or len(role_replies) < LEAST:
        raise DesignError(
            f"{run.folder} holds {len(default_replies)} replies of the default and {len(role_replies)} of roles; "
            f"calibration needs {2 * LEAST} and {LEAST}: map with more replies of either (default_responses, per_role)"
        )
    # Floors are set on the ones and priced on the others: what a cap costs is not to be read off what it was made from.
    shuffled = [default_replies[k] for k in rng.permutation(len(default_replies))]
    held_out_count = min(held_out, len(shuffled) // 2)
    drawn = (shuffled[held_out_count:][:default], role_replies, shuffled[:held_out_count])
    replies = _replies(run, set().union(*drawn))
    return ReplySample(*(tuple(replies[place] for place in places) for places in drawn))


def _replies(run: Run, places: Collection[ReplyPlace]) -> dict[ReplyPlace, RunReply]:
    replies: dict[ReplyPlace, RunReply] = {}
    for shard in sorted({shard for shard, _ in places}):
        rows = run.read(shard, ["role", "system", "user", "token_ids", "text"])
        for k in [k for of_shard, k in places if of_shard == shard]:
            (row,) = rows.slice(k, 1).to_pylist()
            system = [{"role": "system", "content": row["system"]}] if row["system"] else []
            messages = (*system, {"role": "user", "content": row["user"]})
            replies[shard, k] = RunReply(row["role"], messages, tuple(row["token_ids"]), row["text"])
    return replies


def replayed(engine: Engine, replies: Sequence[RunReply], part: Part = "answer", **options: Any) -> Iterator[Turn]:
    """Each reply's part as `Engine.replay` reads it, in order, so many at a time that every token's own may be asked for."""
    chat, size = engine.chat, CHUNK
    if options.get("each") and replies:
        longest = max(len(r.token_ids) for r in replies)
        size = max(1, min(CHUNK, EACH // (4 * len(options["read"]) * engine.info.hidden * longest)))
    for k in range(0, len(replies), size):
        prompts = [chat.prompt_ids(r.messages) for r in replies[k : k + size]]
        spans = [r.span(ids, chat.splitter(ids), part) for r, ids in zip(replies[k : k + size], prompts, strict=True)]
        for turns in engine.replay(spans, **options):
            yield turns[0]


def token_projections(engine: Engine, space: PersonaSpace, replies: Sequence[RunReply]) -> list[Tensor]:
    """Every token's projection on the axis at every layer, one `[tokens, layers]` a reply."""
    axis = space.tensors["axis"]
    unit = axis / axis.norm(dim=-1, keepdim=True)
    all_layers = range(len(axis))
    return [
        torch.einsum("tld,ld->tl", turn.each, unit)
        for turn in replayed(engine, replies, space.span, read=all_layers, each=True)
        if turn.each is not None
    ]


def calibrate(engine: Engine, space: PersonaSpace, sample: ReplySample, layers: range) -> PersonaSpace:
    """The space with caps at `layers`, from a replayed sample; see `with_caps`."""
    check_range(layers, len(space.tensors["axis"]))
    default = token_projections(engine, space, sample.default)
    roles = token_projections(engine, space, sample.roles)
    return with_caps(space, default, roles, layers, [r.role for r in sample.roles])


def projections_while_mapping(run: Run, axis: Tensor) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """Every token's projection on the axis `[layers, hidden]`, of the default's replies and of roles', one `[tokens, layers]` a
    reply, as they were taken while they were given; and whose the latter are. Empty where none were, or on another axis."""
    default: list[Tensor] = []
    roles: list[Tensor] = []
    role_names: list[str] = []
    for shard in run.done():
        projections = run.projections(shard, axis)
        # One shard without, and percentiles would be those of the others alone: then all are replayed.
        if projections is None:
            return [], [], []
        for role, tokens in zip(run.read(shard, ["role"])["role"].to_pylist(), projections, strict=True):
            if not len(tokens):
                continue
            if role == DEFAULT:
                default.append(tokens)
            else:
                roles.append(tokens)
                role_names.append(role)
    return default, roles, role_names


def with_caps(
    space: PersonaSpace, default: list[Tensor], roles: list[Tensor], layers: range, names: Sequence[str]
) -> PersonaSpace:
    """The space with tokens' quantiles at every layer, the means of replies' beginnings, and a cap for each percentile of the
    default's tokens and of all, at `layers`. default, roles: tokens' projections, one `[tokens, layers]` a reply; names: whose
    the roles' are. Raises `UsageError` for layers that do not exist."""
    check_range(layers, len(space.tensors["axis"]))
    all_tokens = [torch.cat(default), torch.cat(roles)]
    token_sets = {"default": all_tokens[0], "roles": all_tokens[1], "all": torch.cat(all_tokens)}
    quantile_steps = torch.linspace(0, 1, 101)
    tensors = dict(space.tensors)
    for name, projections in token_sets.items():
        tensors[f"quantiles_{name}_tokens"] = torch.quantile(projections, quantile_steps, dim=0)
    tensors["beginnings_default"] = beginnings(default, space.layer)
    tensors["beginnings_roles"] = beginnings(roles, space.layer)
    lengths = [n for n in LENGTHS if n <= max(len(p) for p in (*default, *roles))] or [LENGTHS[0]]
    meta = {
        **space.meta,
        "caps": {},
        "calibration": {
            "default_replies": len(default),
            "role_replies": len(roles),
            "tokens": {k: len(v) for k, v in token_sets.items()},
            "lengths": lengths,
            "roles": list(names),
        },
    }
    capped_space = PersonaSpace(meta, tensors)
    for kind in KINDS:
        for percentile in PERCENTILES:
            name, cap = named_cap(capped_space, kind, percentile, layers)
            meta["caps"][name] = cap
    return capped_space


WITHOUT_SWEEP = "it is the floor that the default's own tokens set (their 25th percentile); no sweep was made"


def named_cap(space: PersonaSpace, of: str, percentile: int, layers: range) -> tuple[str, dict[str, Any]]:
    """A cap and its name, which says whose tokens' projections, which percentile, and which layers.

    >>> named_cap(PersonaSpace.load("smollm2"), "default", 25, range(18, 26))[0]
    'default-p25@18:26'
    """
    check_kind(of, percentile)
    check_range(layers, len(space.tensors["axis"]))
    floors = space.tensors[f"quantiles_{of}_tokens"][percentile]
    cap = {
        "of": of,
        "percentile": percentile,
        "layers": list(layers),
        "floors": [float(floors[layer]) for layer in layers],
    }
    return f"{of}-p{percentile}@{layers.start}:{layers.stop}", cap


def recommended(space: PersonaSpace, name: str, why: Mapping[str, Any]) -> PersonaSpace:
    """The space with the cap of that name also under `capped`, and why it is the one."""
    caps = {k: v for k, v in space.caps.items() if k != "capped"}
    return PersonaSpace(
        {**space.meta, "caps": {"capped": {**caps[name], "is": name, "why": why}, **caps}}, space.tensors
    )


def beginnings(projections: Sequence[Tensor], layer: int) -> Tensor:
    """The mean projection at a layer of each reply's first 4, 8, 16 … tokens, `[lengths, replies]`; NaN where it is
    shorter than that."""
    means = torch.full((len(LENGTHS), len(projections)), float("nan"))
    for k, tokens in enumerate(projections):
        for row, n in enumerate(LENGTHS):
            if len(tokens) >= n:
                means[row, k] = tokens[:n, layer].mean()
    return means


def default_range(layers: int) -> range:
    """Late layers, where the study capped: from 60% of the depth to 87%.

    >>> default_range(30)
    range(18, 26)
    """
    start = round(0.6 * layers)
    return range(start, max(start + 1, round(0.87 * layers)))


def parse_range(text: str) -> range:
    """`A:B`, half-open as in Python. Raises `UsageError`.

    >>> parse_range("18:26")
    range(18, 26)
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UsageError(f"layers={text}: expected A:B with A < B, as in 18:26")
    return range(int(first), int(last))


def check_kind(of: str, percentile: int) -> None:
    """Raises `UsageError` for a set of tokens or a percentile that does not exist."""
    if of not in KINDS:
        raise UsageError(f"of={of}: expected one of {', '.join(KINDS)}")
    if not 0 <= percentile <= 100:
        raise UsageError(f"percentile={percentile}: expected 0 to 100")


def check_range(layers: range, n: int) -> None:
    """Raises `UsageError` for layers that do not exist."""
    if not layers or layers.start < 0 or layers.stop > n:
        raise UsageError(f"layers={layers.start}:{layers.stop}: the model has layers 0 to {n - 1} (0:{n})")
