"""What a space is estimated from: sums by block of questions and a sample, of activations that are kept, or in their place.

Of a run that is too big to keep, only these stand on the disk: by score class and layer each role's sums by block of questions
and each question's, in fp64; how often each role answered each question; and whole activations of a sample. Shards are added in
any order; a generation of sums says which shards are in it, and stands whole before those shards' activations go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from personaspace import json_text
from personaspace.catalog import DEFAULT
from personaspace.engines.prompts import row_seed
from personaspace.errors import DesignError, RunError
from personaspace.files import Place, first_line, load_tensors, write_whole
from personaspace.json_text import shown
from personaspace.judges import KEPT
from personaspace.runs import KeptScore, Shards, digests
from personaspace.stats import vectors
from personaspace.stats.vectors import Cells, Floats, Ints

ALL = KEPT + 1
"""The class of responses that nobody scores: the default's, and everybody's without a judge. From KEPT on, they count."""

SAMPLE = 2048
"""Whole activations kept of the default, and as many of all roles together."""

BLOCKS = 20

COUNTS, COUNTS_DIGEST = "counts.safetensors", "counts.sha256"


@dataclass(frozen=True)
class Responses:
    """The responses of some shards that are not empty, as columns `[responses]`, in the order they are stored in.

    role: 0 is the default, then the catalogue's; score: 0–3 or `ALL`; lot: a random number that decides who is sampled;
    instruction: which of its role's.
    """

    shard: Ints
    row: Ints
    role: Ints
    question: Ints
    tokens: Ints
    score: Ints
    lot: Ints
    instruction: Ints

    @classmethod
    def read(
        cls,
        run: Shards,
        shards: Sequence[int],
        roles: Sequence[str],
        scores: Mapping[tuple[str, int], KeptScore] | None,
        seed: int,
        answered: bool = False,
    ) -> Responses:
        """Those of a run of which a token was read; scores None: nobody judged. A response without a score is of class 0.
        answered: those alone that have an answer, whatever part of them was read. Raises `RunError` for a role that is none
        of these."""
        role_index = {DEFAULT: 0, **{name: k + 1 for k, name in enumerate(roles)}}
        rows = []
        for shard in shards:
            table = run.read(shard, ["role", "index", "question", "tokens", "instruction", "text"]).to_pydict()
            answers = table.pop("text")
            for row, (role, index, question, tokens, text) in enumerate(zip(*table.values(), strict=True)):
                if role not in role_index:
                    raise RunError(
                        f"{run.place.root}: shard {shard} answers as {shown(role)}, which is no role of the catalogue"
                    )
                judged = scores is not None and role != DEFAULT
                score = (scores or {}).get((role, index), (0, 0.0))[0] if judged else ALL
                if tokens and (answers[row] or not answered):
                    lot = row_seed(seed, f"sample/{role}", index) >> 1
                    rows.append((shard, row, role_index[role], question, tokens, score, lot, text))
        return cls(*np.array(rows, dtype=np.int64).reshape(-1, 8).T)

    def where(self, mask: NDArray[np.bool_] | Ints) -> Responses:
        """Some of them."""
        return Responses(**{k: v[mask] for k, v in vars(self).items()})

    def by_shard(self) -> Iterator[tuple[int, Responses]]:
        """Each shard's, in the order the shards come in."""
        for shard in dict.fromkeys(self.shard.tolist()):
            yield shard, self.where(self.shard == shard)


class Source(Protocol):
    """What a space is estimated from: the responses that count, of every role.

    n: `[roles, questions]`; block_of: `[questions]` or None, a block to each question. tokens: `[roles]` and norms `[roles,
    layers]`, sums over tokens of the residual norm. role, question: `[sample]`, of the responses whose activations are there.
    """

    n: Ints
    block_of: Ints | None
    tokens: Ints
    norms: Floats
    role: Ints
    question: Ints

    def sums(self, cells: Cells, layers: slice) -> Tensor:
        """Sums by cell, `[cells + questions, layers, hidden]`."""
        ...

    def sample(self, which: NDArray[np.bool_], layers: slice) -> Iterator[Tensor]:
        """The sample's activations, `[n, layers, hidden]` at a time, in order."""
        ...

    def by_instruction(self) -> Cells | None:
        """Cells whose roles are pairs of role and instruction, `role · instructions + instruction`, and whose blocks are
        single questions; None where instructions were not told apart."""
        ...

    def sums_by_instruction(self, cells: Cells, layers: slice) -> Tensor:
        """Sums by those cells, `[cells + questions, layers, hidden]`."""
        ...


class FromActivations:
    """A source made of kept activations. block_of None: as exact as can be; otherwise as from sums of those blocks."""

    def __init__(self, run: Shards, responses: Responses, roles: int, questions: int, block_of: Ints | None) -> None:
        self.run, self.block_of = run, block_of
        self.included = responses.where(responses.score >= KEPT)
        self.n = np.zeros((roles, questions), dtype=np.int64)
        np.add.at(self.n, (self.included.role, self.included.question), 1)
        self.tokens, self.norms = np.zeros(roles, dtype=np.int64), np.zeros((roles, 0))
        np.add.at(self.tokens, self.included.role, self.included.tokens)
        for shard, in_shard in self.included.by_shard():
            self.norms = _add_norms(self.norms, (in_shard.role,), run, shard, in_shard)
        drawn = None if block_of is None else _drawn(self.included.role, self.included.lot)
        self.sampled = self.included if drawn is None else self.included.where(drawn)
        self.role, self.question = self.sampled.role, self.sampled.question

    def sums(self, cells: Cells, layers: slice) -> Tensor:
        placed = cells.placing(self.included.role, self.included.question)
        return vectors.cell_sums(placed, self._activations(self.included, layers))

    def sample(self, which: NDArray[np.bool_], layers: slice) -> Iterator[Tensor]:
        return self._activations(self.sampled.where(which), layers)

    def by_instruction(self) -> Cells | None:
        if self.block_of is not None:  # as from sums
            return None
        n = np.zeros((len(self.n) * self._instructions(), self.n.shape[1]), dtype=np.int64)
        np.add.at(n, (self._texts(), self.included.question), 1)
        return Cells.counted((), n)

    def sums_by_instruction(self, cells: Cells, layers: slice) -> Tensor:
        placed = cells.placing(self._texts(), self.included.question)
        return vectors.cell_sums(placed, self._activations(self.included, layers))

    def _instructions(self) -> int:
        return int(self.included.instruction.max()) + 1

    def _texts(self) -> Ints:
        texts: Ints = self.included.role * self._instructions() + self.included.instruction
        return texts

    def _activations(self, responses: Responses, layers: slice) -> Iterator[Tensor]:
        for shard, in_shard in responses.by_shard():
            yield self.run.tensors(shard, "activations", layers)[torch.from_numpy(in_shard.row)]


@dataclass(frozen=True)
class SumsState:
    """What is in the sums: n `[classes, roles, questions]`, tokens `[classes, roles]`, norms `[classes, roles, layers]`; the
    sample's role, question and lot, `[sample, 3]`."""

    generation: int
    shards: tuple[int, ...]
    n: Ints
    tokens: Ints
    norms: Floats
    sample: Ints


class Sums:
    """A reading's sums on the disk, in a folder. kept_layers: those whose activations stay beside them."""

    def __init__(self, run: Shards, folder: Path, roles: int, block_of: Ints, kept_layers: range = range(0)) -> None:
        self.run, self.folder, self.roles, self.block_of, self.kept_layers = run, folder, roles, block_of, kept_layers
        self.place = Place(folder)

    def state(self) -> SumsState:
        """What was added so far."""
        path = self.folder / COUNTS
        if not path.is_file():
            n = np.zeros((ALL + 1, self.roles, len(self.block_of)), dtype=np.int64)
            return SumsState(
                0, (), n, n[:, :, 0].copy(), np.zeros((ALL + 1, self.roles, 0)), np.zeros((0, 3), np.int64)
            )
        tensors, metadata = load_tensors(path)
        values = {name: t.numpy() for name, t in tensors.items()}
        return SumsState(int(metadata["generation"]), tuple(json_text.parse(metadata["shards"])), **values)

    def fault(self) -> str | None:
        """What is wrong with them, in words: a file is missing, or is not what was written; None where nothing is, and of sums
        of an earlier version, which have no digests, where they can be read."""
        if fault := digests.fault_of(self.place, COUNTS_DIGEST, COUNTS):
            return fault
        try:
            state = self.state()
            if not state.generation:
                return None
            by_layer = json_text.parse(load_tensors(self.folder / COUNTS)[1].get("digests", "[]"))
            for layer in range(state.norms.shape[-1]):
                path = self._file(state.generation, layer)
                if not by_layer:
                    load_tensors(path)
                elif (digest := digests.digest_at(self.place, path.name)) is None:
                    return f"{path} is missing"
                elif digest != by_layer[layer]:
                    return f"{path} is not what was written"
        except (RunError, ValueError, KeyError, TypeError, IndexError) as e:
            return first_line(e)
        return None

    def discard(self) -> None:
        """Takes them away: nothing is summed yet."""
        for name in (COUNTS, COUNTS_DIGEST):
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.glob("[0-9]*.safetensors"):
            path.unlink()

    def bytes(self) -> int:
        """What they take."""
        return sum(p.stat().st_size for p in self.folder.glob("*.safetensors"))

    def fold(self, responses: Responses, shards: Sequence[int]) -> None:
        """Adds shards, given their responses, and lets go of their activations. Killed at any moment, it was done or it
        was not."""
        # 1) Counts and norms, which are small, with the new shards' added.
        old = self.state()
        n, tokens, norms = old.n.copy(), old.tokens.copy(), old.norms
        np.add.at(n, (responses.score, responses.role, responses.question), 1)
        np.add.at(tokens, (responses.score, responses.role), responses.tokens)
        for shard, in_shard in responses.by_shard():
            norms = _add_norms(norms, (in_shard.score, in_shard.role), self.run, shard, in_shard)
        # 2) The sample is drawn anew from the old one and the new responses; lots make it that of all of them, in any order.
        candidates = responses.where(responses.score >= KEPT)
        table = np.stack([candidates.role, candidates.question, candidates.lot], axis=1)
        table = np.concatenate([old.sample, table])
        drawn = _drawn(table[:, 0], table[:, 2])
        sources = np.concatenate([np.full(len(old.sample), -1), candidates.shard])[drawn]
        rows = np.concatenate([np.arange(len(old.sample)), candidates.row])[drawn]
        new = SumsState(old.generation + 1, (*old.shards, *shards), n, tokens, norms, table[drawn])
        # 3) Layer by layer into files of a new generation, so that the old one stays whole until the new one is.
        layer_digests: list[str] = []
        with self.run.at_hand(shards):
            for layer in range(norms.shape[-1]):
                tensors = self._added(layer, old, new, responses)
                tensors["sample"] = self._gathered(layer, old, sources, rows)
                data = save(tensors)
                layer_digests.append(digests.digest_of(data))
                write_whole(self._file(new.generation, layer), data)
        # 4) The counts name the generation and its shards: with this write the new one stands, and activations may go.
        values = {k: torch.from_numpy(v) for k, v in vars(new).items() if isinstance(v, np.ndarray)}
        metadata = {
            "generation": str(new.generation),
            "shards": json.dumps(new.shards),
            "digests": json.dumps(layer_digests),
        }
        digests.write_recorded(self.place, COUNTS_DIGEST, COUNTS, save(values, metadata))
        self.settle()

    def settle(self) -> None:
        """Takes away what is in the sums already, and generations that are over or were never finished."""
        state = self.state()
        for path in self.folder.glob("[0-9]*.safetensors"):
            if not path.name.startswith(f"{state.generation:05d}-"):
                path.unlink()
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        for shard in set(state.shards) & set(self.run.whole()):
            if not self.kept_layers:
                self.run.drop(shard)
            elif (all_layers := self.run.tensors(shard, "activations")).shape[1] != len(self.kept_layers):
                norms = self.run.tensors(shard, "norms")
                chosen = all_layers[:, self.kept_layers.start : self.kept_layers.stop]
                self.run.write_tensors(shard, chosen, norms, f"{self.kept_layers.start}:{self.kept_layers.stop}")

    def _added(self, layer: int, old: SumsState, new: SumsState, responses: Responses) -> dict[str, Tensor]:
        """A layer's sums by class, `[cells + questions, hidden]`, with the new responses'."""
        stored_by_class = self._layer(old, layer)
        cells_by_class = {
            score: Cells.counted((), new.n[score], self.block_of) for score in range(ALL + 1) if new.n[score].any()
        }
        totals: dict[str, Tensor] = {}
        for shard, in_shard in responses.by_shard():
            block = self.run.tensors(shard, "activations", slice(layer, layer + 1))[:, 0]
            for score in set(in_shard.score.tolist()):
                of_class = in_shard.where(in_shard.score == score)
                total = totals.setdefault(str(score), _zeros(cells_by_class[score], block.shape[-1]))
                placed = cells_by_class[score].placing(of_class.role, of_class.question)
                vectors.add_to(total, placed, block[torch.from_numpy(of_class.row)])
        for score, cells in cells_by_class.items():
            if (stored := stored_by_class.get(str(score))) is not None:
                total = totals.setdefault(str(score), _zeros(cells, stored.shape[-1]))
                vectors.merge_into(total, cells, stored, Cells.counted((), old.n[score], self.block_of))
        return totals

    def _gathered(self, layer: int, old: SumsState, sources: Ints, rows: Ints) -> Tensor:
        """The sample's activations at a layer, `[sample, hidden]`, from the old sample (source −1) and from shards."""
        parts: dict[int, Tensor] = {}
        for source in dict.fromkeys(sources.tolist()):
            if source < 0:
                activations = self._layer(old, layer)["sample"]
            else:
                activations = self.run.tensors(source, "activations", slice(layer, layer + 1))[:, 0].float()
            parts[source] = activations[torch.from_numpy(rows[sources == source])]
        if not parts:
            return torch.zeros(0, 1)
        gathered = torch.empty(len(rows), next(iter(parts.values())).shape[-1])
        for source, part in parts.items():
            gathered[torch.from_numpy(sources == source)] = part
        return gathered

    def _layer(self, state: SumsState, layer: int) -> dict[str, Tensor]:
        return load_tensors(self._file(state.generation, layer))[0] if state.generation else {}

    def _file(self, generation: int, layer: int) -> Path:
        return self.folder / f"{generation:05d}-{layer:03d}.safetensors"


class FromSums:
    """A source made of sums on the disk: the classes that count, as one."""

    def __init__(self, sums: Sums) -> None:
        self.on_disk, self.state = sums, sums.state()
        self.block_of: Ints | None = sums.block_of
        self.n = self.state.n[KEPT:].sum(0)
        self.tokens, self.norms = self.state.tokens[KEPT:].sum(0), self.state.norms[KEPT:].sum(0)
        self.role, self.question = self.state.sample[:, 0], self.state.sample[:, 1]

    def sums(self, cells: Cells, layers: slice) -> Tensor:
        return torch.stack([self._layer(cells, layer) for layer in range(layers.start, layers.stop)], 1)

    def sample(self, which: NDArray[np.bool_], layers: slice) -> Iterator[Tensor]:
        by_layer = [self.on_disk._layer(self.state, k)["sample"] for k in range(layers.start, layers.stop)]
        yield torch.stack(by_layer, 1)[torch.from_numpy(which)]

    def by_instruction(self) -> Cells | None:
        return None

    def sums_by_instruction(self, cells: Cells, layers: slice) -> Tensor:
        raise DesignError("these sums do not tell instructions apart")

    def _layer(self, cells: Cells, layer: int) -> Tensor:
        stored = self.on_disk._layer(self.state, layer)
        total = _zeros(cells, stored["sample"].shape[-1])
        for score in (KEPT, ALL):
            if str(score) in stored:
                stored_cells = Cells.counted((), self.state.n[score], self.on_disk.block_of)
                vectors.merge_into(total, cells, stored[str(score)], stored_cells)
        return total


def _zeros(cells: Cells, hidden: int) -> Tensor:
    return torch.zeros(len(cells.count) + len(cells.block_of), hidden, dtype=torch.float64)


def _drawn(role: Ints, lot: Ints) -> Ints:
    """Who is sampled: of the default's and of the roles' the `SAMPLE` with the smallest lots, in the order given. A sample of
    samples is that of the whole."""
    order = np.argsort(lot, kind="stable")
    smallest_lots = [order[group[order]][:SAMPLE] for group in (role == 0, role != 0)]
    drawn: Ints = np.sort(np.concatenate(smallest_lots))
    return drawn


def _add_norms(total: Floats, indices: tuple[Ints, ...], run: Shards, shard: int, in_shard: Responses) -> Floats:
    """Sums over tokens of the residual norm, with a shard's added."""
    token_sums = run.tensors(shard, "norms")[torch.from_numpy(in_shard.row)].double().numpy() * in_shard.tokens[:, None]
    if not total.shape[-1]:
        total = np.zeros((*total.shape[:-1], token_sums.shape[-1]))
    total = total.copy()
    np.add.at(total, indices, token_sums)
    return total
