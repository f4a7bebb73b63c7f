"""Shards of replies and activations: when one is safe, and how it is read again; it knows nothing of configurations.

A shard is a parquet file of responses and a safetensors file of activations. Each is written under another name, flushed
and renamed, the parquet last: where it stands, the shard is whole. Its digests are written before that (`digests`), and a
file that changed since is found. Shards may lie elsewhere (`Place`), under the same rules.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from personaspace.engines import Response
from personaspace.errors import RunError
from personaspace.files import LEFT_OVER, Place, check_columns, first_line, table_bytes, write_whole
from personaspace.runs.digests import Recorded, digest_at, digest_of, record, recorded

AGAIN = "the map's command does it again"

SAME = 1 - 1e-6
"""Cosine from which directions are the same: sums that were added up in another order differ by as much."""

SCHEMA = pa.schema(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("instruction", pa.int32(), nullable=False),
        pa.field("question", pa.int32(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        ("seed", pa.uint64()),
        ("system", pa.string()),
        pa.field("user", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        ("finish_reason", pa.string()),
    ]
)
"""What is read of a shard; in its file every column may be empty."""

_WRITTEN = pa.schema([(column.name, column.type) for column in SCHEMA])


class Shards:
    """Shards of responses with their activations, at a place. near: where what lies elsewhere is put to be read at hand."""

    def __init__(self, place: Place, near: Path | None = None) -> None:
        self.place, self.near = place, near
        self._records: dict[int, Recorded] = {}  # digests of shards that were looked at

    def clean_shards(self) -> None:
        """Takes away what a killed process left half done."""
        done = set(self.done())
        for folder, ending in _ENDINGS.items():
            names = self.place.names(folder)
            for name in names:
                if name.startswith(".part-") and LEFT_OVER.fullmatch(name):
                    self.place.remove(f"{folder}/{name}")
            # What has no parquet file: the process died before it wrote that, or somebody took it away. Digests stay, by
            # which that is named.
            for shard in set(_numbers(names, ending)) - done if folder != "digests" else ():
                self.place.remove(_name(folder, shard))

    def done(self) -> list[int]:
        """The numbers of the shards that are whole."""
        return _numbers(self.place.names("responses"), ".parquet")

    def lost(self) -> list[int]:
        """The numbers of the shards that have digests and no parquet file: a process was stopped while it wrote them, or the
        file was deleted."""
        return sorted(set(_numbers(self.place.names("digests"), ".sha256")) - set(self.done()))

    def has(self, shard: int) -> bool:
        """Whether a shard is whole."""
        return self.place.has(_responses(shard))

    def whole(self) -> list[int]:
        """The numbers of the shards whose activations are there."""
        return _numbers(self.place.names("activations"), ".safetensors")

    def write(self, shard: int, responses: Sequence[Response], along: Tensor | None = None) -> None:
        """Keeps a shard, which is safe against a kill once this returns. along: the directions `[layers, hidden]` that the
        responses' tokens were projected on. Raises `RunError` where it can't be written."""
        # The activations go first: without its parquet file a shard does not count, and the next process drops what lies there.
        means = torch.stack([_tensor(r.activation) for r in responses])
        files = {_activations(shard): _tensor_bytes(means, torch.stack([_tensor(r.norms) for r in responses]))}
        if along is not None:
            each = [torch.zeros(0, len(along)) if r.projections is None else r.projections for r in responses]
            lengths = torch.tensor([len(values) for values in each])
            tensors = {"projections": torch.cat(each), "tokens": lengths, "along": along.contiguous()}
            files[_projections(shard)] = save(tensors)
        rows = [
            {
                "role": r.prompt.role,
                "instruction": r.prompt.instruction,
                "question": r.prompt.question,
                "index": r.prompt.index,
                "seed": r.prompt.seed,
                "system": next((m["content"] for m in r.prompt.messages if m["role"] == "system"), None),
                "user": r.prompt.messages[-1]["content"],
                "text": r.text,
                "token_ids": list(r.token_ids),
                "tokens": r.tokens,
                "finish_reason": r.finish_reason,
            }
            for r in responses
        ]
        # The parquet file goes last, and makes the shard whole.
        files[_responses(shard)] = table_bytes(pa.Table.from_pylist(rows, schema=_WRITTEN))
        self._record(shard, {name: [digest_of(data)] for name, data in files.items()})
        for name, data in files.items():
            self.place.write(name, data)

    def projections(self, shard: int, along: Tensor) -> list[Tensor] | None:
        """Each response's tokens' projections on those directions `[layers, hidden]`, `[tokens, layers]`, in the shard's order;
        without tokens where they were not kept. None where they were not taken, or on other directions."""
        if not self.place.has(_projections(shard)):
            return None
        try:
            tensors = load(self._bytes(shard, _projections(shard)))
            each = list(tensors["projections"].split(tensors["tokens"].tolist()))
            taken_along = tensors["along"]
        except (SafetensorError, KeyError, RuntimeError, TypeError):
            return None  # as good as never taken: who needs them replays
        if taken_along.shape != along.shape or any(
            t.shape[1:] != along.shape[:1] or t.dtype != along.dtype for t in each
        ):
            return None
        return None if torch.cosine_similarity(taken_along, along).min() < SAME else each

    def write_tensors(self, shard: int, means: Tensor, norms: Tensor, layers: str = "") -> None:
        """A shard's activations anew, `[n, layers, hidden]`; layers: which they are, where not all."""
        name, data = _activations(shard), _tensor_bytes(means, norms, layers)
        if self._recorded(shard) is None and self.has(shard):
            self._give_digests(shard, activations=True)
        digests = {**(self._recorded(shard) or {})}
        # Both count until the new ones stand.
        self._record(shard, {**digests, name: [*digests.get(name, ()), digest_of(data)]})
        self.place.write(name, data)
        self._record(shard, {**digests, name: [digest_of(data)]})

    def read(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A shard's responses. Raises `RunError` for a file that is not one, or not what was written."""
        name = _responses(shard)
        try:
            source = pa.BufferReader(self._bytes(shard, name))
            table = pq.read_table(source, columns=list(columns) if columns else None)
            check_columns(table, pa.schema([SCHEMA.field(name) for name in columns or SCHEMA.names]))
            return table
        except (OSError, pa.ArrowException, ValueError) as e:
            raise RunError(f"{self.place.root}/{name}: cannot be read: {first_line(e)}; {AGAIN}") from None

    def _bytes(self, shard: int, name: str) -> bytes:
        """A file of a shard, which is what was written."""
        data: bytes = self.place.read(name).to_pybytes()
        try:
            digests = self._recorded(shard)
        except ValueError as e:
            raise RunError(f"{self.place.root}/{e}; {AGAIN}") from None
        if digests and digest_of(data) not in digests.get(name, ()):
            raise RunError(f"{self.place.root}/{name}: found other content than was written; {AGAIN}")
        return data

    # -- what was written --------------------------------------------------------------------------------------------

    def _record(self, shard: int, digests: Recorded) -> None:
        record(self.place, _digests(shard), digests)
        self._records[shard] = digests

    def _recorded(self, shard: int) -> Recorded | None:
        if shard not in self._records and (digests := recorded(self.place, _digests(shard))) is not None:
            self._records[shard] = digests
        return self._records.get(shard)

    def fault(self, shard: int, activations: bool = True) -> str | None:
        """What is wrong with a shard that is there or lost, in words: a file is missing, or is not what was written; None where
        nothing is. activations: whether they must be there. Of a shard without digests (of an earlier version) it is seen
        that its files can be read and fit each other, and it gets them."""
        self._records.pop(shard, None)
        try:
            digests = self._recorded(shard)
        except (ValueError, RunError) as e:
            return f"{self.place.root}/{_digests(shard)} is not what was written: {e}"
        if digests is None:
            return self._give_digests(shard, activations)
        wanted_files = [
            *sorted(digests, key=lambda name: name != _responses(shard)),
            *([_activations(shard)] if activations and _activations(shard) not in digests else []),
        ]
        own_names = {_responses(shard), _activations(shard), _projections(shard)}
        if _responses(shard) not in digests or not own_names.issuperset(digests):
            return f"{self.place.root}/{_digests(shard)} is not what was written"
        for name in wanted_files:
            if name == _activations(shard) and not activations:
                continue
            digest = digest_at(self.place, name)
            if digest is None:
                return f"{self.place.root}/{name} is missing"
            if digest not in digests.get(name, ()):
                return f"{self.place.root}/{name} is not what was written"
        return None

    def _give_digests(self, shard: int, activations: bool) -> str | None:
        names = [
            _responses(shard),
            *([_activations(shard)] if activations or self.place.has(_activations(shard)) else []),
        ]
        if self.place.has(_projections(shard)):
            names.append(_projections(shard))
        digests = {name: digest_at(self.place, name) for name in names}
        if lacks := [name for name, digest in digests.items() if digest is None]:
            return f"{self.place.root}/{lacks[0]} is missing"
        try:
            rows = self.read(shard, ["index"]).num_rows
            if _activations(shard) in names and len(self.tensors(shard, "norms")) != rows:
                return f"{self.place.root}/{_activations(shard)} has not as many rows as the shard has responses"
        except RunError as e:
            return str(e).partition("; ")[0]
        self._record(shard, {name: [digest] for name, digest in digests.items() if digest})
        return None

    def discard(self, shard: int) -> None:
        """Takes a shard away, so that it is asked again."""
        self._records.pop(shard, None)
        for name in (_responses(shard), _activations(shard), _projections(shard), _digests(shard)):
            if self.place.has(name):
                self.place.remove(name)

    # -- activations -------------------------------------------------------------------------------------------------

    def tensors(self, shard: int, name: str, layers: slice = slice(None)) -> Tensor:
        """A shard's `activations` `[n, layers, hidden]` or `norms` `[n, layers]`, the layers of a slice alone."""
        path = _activations(shard)
        near = (self.place.local or self.near or Path()) / path
        try:
            if self.place.local is None and not near.is_file():
                # An address has no slices: all of it comes over, and one layer of it stays.
                all_layers: Tensor = load(self.place.read(path).to_pybytes())[name]
                return all_layers[:, layers]
            with safe_open(near, framework="pt") as f:
                tensor: Tensor = f.get_slice(name)[:, layers]
                return tensor
        except (OSError, SafetensorError) as e:
            raise RunError(f"{self.place.root}/{path}: cannot be read ({first_line(e)}); {AGAIN}") from None

    @contextmanager
    def at_hand(self, shards: Sequence[int]) -> Iterator[None]:
        """While it lasts, activations that lie elsewhere are on this disk, too, to be read layer by layer."""
        if self.place.local or self.near is None:
            yield
            return
        try:
            for shard in shards:
                write_whole(self.near / _activations(shard), self.place.read(_activations(shard)).to_pybytes())
            yield
        finally:
            shutil.rmtree(self.near, ignore_errors=True)

    def drop(self, shard: int) -> None:
        """Lets go of a shard's activations."""
        name = _activations(shard)
        if digests := self._recorded(shard):
            self._record(shard, {n: each for n, each in digests.items() if n != name})
        self.place.remove(name)


_ENDINGS = {"responses": ".parquet", "activations": ".safetensors", "projections": ".safetensors", "digests": ".sha256"}


def _name(folder: str, shard: int) -> str:
    return f"{folder}/part-{shard:05d}{_ENDINGS[folder]}"


def _responses(shard: int) -> str:
    return _name("responses", shard)


def _activations(shard: int) -> str:
    return _name("activations", shard)


def _projections(shard: int) -> str:
    return _name("projections", shard)


def _digests(shard: int) -> str:
    return _name("digests", shard)


def _numbers(names: Sequence[str], ending: str) -> list[int]:
    """The shards of files' names; whatever else lies there (`part-00009 (copy).parquet`) is nobody's."""
    matches = (re.fullmatch(r"part-(\d{5,9})" + re.escape(ending), name, re.ASCII) for name in names)
    return sorted(int(match[1]) for match in matches if match and match[1] == f"{int(match[1]):05d}")


def _tensor_bytes(means: Tensor, norms: Tensor, layers: str = "") -> bytes:
    data: bytes = save(
        {"activations": means.contiguous(), "norms": norms.contiguous()}, {"layers": layers} if layers else None
    )
    return data


def _tensor(value: Tensor | None) -> Tensor:
    if value is None:
        raise RunError("a response without an activation cannot be kept in a run")
    return value
