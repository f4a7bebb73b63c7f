"""Shards of replies and activations: when one is safe, and how it is read again; it knows nothing of configurations.

A shard is a parquet file of responses and a safetensors file of activations. Each is written under another name, flushed
and renamed, the parquet last: where it stands, the shard is whole. Shards may lie elsewhere (`Place`), under the same rules.
"""

from __future__ import annotations

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
from personaspace.files import Place, table_bytes

SAME = 1 - 1e-6
"""Cosine from which directions are the same: sums that were added up in another order differ by as much."""

SCHEMA = pa.schema(
    [
        ("role", pa.string()),
        ("instruction", pa.int32()),
        ("question", pa.int32()),
        ("index", pa.int32()),
        ("seed", pa.uint64()),
        ("system", pa.string()),
        ("user", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
    ]
)


class Shards:
    """Shards of responses with their activations, at a place. near: where what lies elsewhere is put to be read at hand."""

    def __init__(self, place: Place, near: Path | None = None) -> None:
        self.place, self.near = place, near

    def clean_shards(self) -> None:
        """Takes away what a killed process left half done."""
        for folder in ("responses", "activations", "projections"):
            for name in self.place.names(folder):
                if name.startswith(".") and name.endswith(".tmp"):
                    self.place.remove(f"{folder}/{name}")
        # Activations without a parquet file: the process died between the two.
        for shard in set(self.whole()) - set(self.done()):
            self.drop(shard)

    def done(self) -> list[int]:
        """The numbers of the shards that are whole."""
        return _numbers(self.place.names("responses"), ".parquet")

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
        self.write_tensors(shard, means, torch.stack([_tensor(r.norms) for r in responses]))
        if along is not None:
            each = [torch.zeros(0, len(along)) if r.projections is None else r.projections for r in responses]
            lengths = torch.tensor([len(values) for values in each])
            tensors = {"projections": torch.cat(each), "tokens": lengths, "along": along.contiguous()}
            self.place.write(_projections(shard), save(tensors))
        # The parquet file goes last, and makes the shard whole.
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
        self.place.write(_responses(shard), table_bytes(pa.Table.from_pylist(rows, schema=SCHEMA)))

    def projections(self, shard: int, along: Tensor) -> list[Tensor] | None:
        """Each response's tokens' projections on those directions `[layers, hidden]`, `[tokens, layers]`, in the shard's order;
        without tokens where they were not kept. None where they were not taken, or on other directions."""
        if not self.place.has(_projections(shard)):
            return None
        try:
            tensors = load(self.place.read(_projections(shard)).to_pybytes())
        except SafetensorError:
            return None  # as good as never taken: who needs them replays
        if tensors["along"].shape != along.shape or torch.cosine_similarity(tensors["along"], along).min() < SAME:
            return None
        return list(tensors["projections"].split(tensors["tokens"].tolist()))

    def write_tensors(self, shard: int, means: Tensor, norms: Tensor, layers: str = "") -> None:
        """A shard's activations, `[n, layers, hidden]`; layers: which they are, where not all."""
        tensors = {"activations": means.contiguous(), "norms": norms.contiguous()}
        self.place.write(_activations(shard), save(tensors, {"layers": layers} if layers else None))

    def read(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A shard's responses. Raises `RunError` for a file that is not one."""
        name = _responses(shard)
        try:
            source = self.place.local / name if self.place.local else pa.BufferReader(self.place.read(name))
            return pq.read_table(source, columns=list(columns) if columns else None)
        except (OSError, pa.ArrowException) as e:
            raise RunError(f"{self.place.root}/{name}: cannot be read: {str(e).splitlines()[0]}") from None

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
            raise RunError(
                f"{self.place.root}/{path}: cannot be read ({e}); delete it and its parquet file, and run the same command"
            ) from None

    @contextmanager
    def at_hand(self, shards: Sequence[int]) -> Iterator[None]:
        """While it lasts, activations that lie elsewhere are on this disk, too, to be read layer by layer."""
        if self.place.local or self.near is None:
            yield
            return
        try:
            (self.near / "activations").mkdir(parents=True, exist_ok=True)
            for shard in shards:
                (self.near / _activations(shard)).write_bytes(self.place.read(_activations(shard)))
            yield
        finally:
            shutil.rmtree(self.near, ignore_errors=True)

    def drop(self, shard: int) -> None:
        """Lets go of a shard's activations."""
        self.place.remove(_activations(shard))


def _responses(shard: int) -> str:
    return f"responses/part-{shard:05d}.parquet"


def _activations(shard: int) -> str:
    return f"activations/part-{shard:05d}.safetensors"


def _projections(shard: int) -> str:
    return f"projections/part-{shard:05d}.safetensors"


def _numbers(names: Sequence[str], ending: str) -> list[int]:
    digits = (
        n.removeprefix("part-").removesuffix(ending) for n in names if n.startswith("part-") and n.endswith(ending)
    )
    return sorted(int(n) for n in digits)


def _tensor(value: Tensor | None) -> Tensor:
    if value is None:
        raise RunError("a response without an activation cannot be kept in a run")
    return value
