"""A run's folder on the disk: its configuration, shards, scores and lock; it knows nothing of models or statistics.

A shard is a parquet file of responses and a safetensors file of activations. Each is written under another name, flushed
and renamed, the parquet last: where it stands, the shard is whole. Shards may lie elsewhere (`Place`), under the same rules.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from personaspace.engines import Response
from personaspace.errors import RunError, RunLocked, RunMismatch
from personaspace.files import Place, read_rows, table_bytes, write_table, write_whole

FORMAT = 1
ONSETS = "onsets"

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


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two configurations differ in, as `name: old → new`."""
    changes = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changes += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key}: {_short(a)} → {_short(b)}")
    return changes


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 4:
        return f"{len(value)} entries ({value[0]}, …)"
    return str(value)


class KeptScore(NamedTuple):
    """A judge's score as a folder keeps it: the most probable one and the expected one, the judge's reason, and a digest of the
    rubric that it went by (None: an earlier version did not note it)."""

    score: int
    expected: float
    reason: str = ""
    rubric: str | None = None


class Folder:
    """What a run or an experiment keeps: configuration, parts, scores, lock. Everything in it goes on from where it stands;
    only the configuration must be the same."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.responses, self.scores = self.folder / "responses", self.folder / "scores"
        self.inside = [self.responses, self.scores]

    @property
    def exists(self) -> bool:
        return (self.folder / "run.json").is_file()

    @property
    def report_file(self) -> Path:
        return self.folder / "report.html"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out. Raises `RunLocked` with who holds the folder, `RunError` where it can't be made."""
        try:
            for folder in self.inside:
                folder.mkdir(parents=True, exist_ok=True)
            handle = open(self.folder / ".lock", "a+")  # noqa: SIM115 - held as long as the run works
        except OSError as e:
            raise RunError(f"{self.folder}: cannot be used as a run's folder: {e.strerror}") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                raise RunLocked(f"{self.folder} is in use by {handle.read().strip() or 'another process'}") from None
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {os.uname().nodename}")
            handle.flush()
            self._clean()
            yield

    def _clean(self) -> None:
        """Takes away what a killed process left half done."""
        for folder in (self.folder, *self.inside):
            for path in folder.glob(".*.tmp"):
                path.unlink()

    # -- configuration -----------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """What stands in `run.json`. Raises `RunError` where there is none or it can't be read."""
        path = self.folder / "run.json"
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.folder}: no run.json in it; is it a run's folder?") from None
        except (OSError, ValueError) as e:
            raise RunError(f"{path}: cannot be read: {e}") from None
        if manifest.get("format") != FORMAT:
            raise RunError(
                f"{path}: found format {manifest.get('format')}, expected {FORMAT}; written by another version?"
            )
        return manifest

    def begin(self, config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        """Starts a run, or goes on with the one that is there. `config` is what determines the responses.

        Raises `RunMismatch` with the differences where the folder holds a run of another configuration.
        """
        config = json.loads(json.dumps(config))
        if self.exists:
            manifest = self.manifest()
            if changed := differences(manifest["config"], config):
                raise RunMismatch(
                    f"{self.folder} holds a run of another configuration ({'; '.join(changed)}); "
                    "give the same options, or another --out"
                )
            return manifest
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
        manifest = {"format": FORMAT, "config": config, "config_hash": digest, **about, "rounds": []}
        self.update(manifest)
        return manifest

    def update(self, manifest: Mapping[str, Any]) -> None:
        """Writes `run.json` anew."""
        write_whole(self.folder / "run.json", json.dumps(manifest, indent=1, ensure_ascii=False).encode())

    # -- scores ------------------------------------------------------------------------------------------------------

    def scores_of(self, judge: str) -> dict[tuple[str, int], KeptScore]:
        """(role, index) → the score a judge gave."""
        path = self.scores / f"{judge}.parquet"
        if not path.is_file():
            return {}
        rows = read_rows(path, "the responses are scored again")
        return {
            (r["role"], r["index"]): KeptScore(r["score"], r["expected"], r.get("reason") or "", r.get("rubric"))
            for r in rows
        }

    def keep_scores(self, judge: str, scores: Mapping[tuple[str, int], tuple[Any, ...]]) -> None:
        """Writes all scores of a judge anew; each is a `KeptScore`, or its beginning."""
        rows = [{"role": k[0], "index": k[1], **KeptScore(*v)._asdict()} for k, v in sorted(scores.items())]
        fields = [("role", pa.string()), ("index", pa.int32()), ("score", pa.int32()), ("expected", pa.float32())]
        fields += [("reason", pa.string()), ("rubric", pa.string())]
        write_table(self.scores / f"{judge}.parquet", pa.Table.from_pylist(rows, schema=pa.schema(fields)))


class Shards:
    """Shards of responses with their activations, at a place. near: where what lies elsewhere is put to be read at hand."""

    def __init__(self, place: Place, near: Path | None = None) -> None:
        self.place, self.near = place, near

    def clean_shards(self) -> None:
        """Takes away what a killed process left half done."""
        for folder in ("responses", "activations"):
            for name in self.place.names(folder):
                if name.startswith(".") and name.endswith(".tmp"):
                    self.place.remove(f"{folder}/{name}")
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
        """Keeps a shard. The activations go first: a shard counts once its parquet file is there. along: the directions that
        the responses' tokens were projected on."""
        means = torch.stack([_tensor(r.activation) for r in responses])
        self.write_tensors(shard, means, torch.stack([_tensor(r.norms) for r in responses]))
        if along is not None:
            each = [torch.zeros(0, len(along)) if r.projections is None else r.projections for r in responses]
            lengths = torch.tensor([len(values) for values in each])
            tensors = {"projections": torch.cat(each), "tokens": lengths, "along": along.contiguous()}
            self.place.write(_projections(shard), save(tensors))
        table = pa.Table.from_pylist([_row(r) for r in responses], schema=SCHEMA)
        self.place.write(_responses(shard), table_bytes(table))

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


class Run(Folder, Shards):
    """A map's folder: shards, and the space and report made of them. The shards lie in it, or where `run.json` says."""

    def __init__(self, folder: str | Path) -> None:
        Folder.__init__(self, folder)
        elsewhere = self.manifest().get("shards") if self.exists else None
        Shards.__init__(self, Place(elsewhere or self.folder), self.folder / ".at-hand")

    @property
    def onsets(self) -> Shards:
        """The shards of prompts that were read before the first word, beside those of the replies."""
        root = self.folder if self.place.local is not None else self.place.root
        return Shards(Place(f"{root}/{ONSETS}"), self.folder / ".at-hand" / ONSETS)

    @property
    def space_file(self) -> Path:
        return self.folder / "space.safetensors"

    def lies(self, manifest: dict[str, Any], address: str) -> None:
        """Says where the shards lie: at an address, under the configuration's hash. Raises `RunMismatch` where the run's lie
        somewhere else already."""
        place = f"{address.rstrip('/')}/{manifest['config_hash']}"
        present_place = manifest.get("shards", self.folder if self.done() else place)
        if present_place != place:
            raise RunMismatch(
                f"{self.folder}: its shards lie in {present_place}, not in {place}; give the same --shards"
            )
        manifest["shards"] = place
        self.update(manifest)
        self.place = Place(place)

    def _clean(self) -> None:
        super()._clean()
        shutil.rmtree(self.folder / ".at-hand", ignore_errors=True)
        self.clean_shards()
        self.onsets.clean_shards()


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


def _row(r: Response) -> dict[str, Any]:
    system = next((m["content"] for m in r.prompt.messages if m["role"] == "system"), None)
    return {
        "role": r.prompt.role,
        "instruction": r.prompt.instruction,
        "question": r.prompt.question,
        "index": r.prompt.index,
        "seed": r.prompt.seed,
        "system": system,
        "user": r.prompt.messages[-1]["content"],
        "text": r.text,
        "token_ids": list(r.token_ids),
        "tokens": len(r.token_ids),
        "finish_reason": r.finish_reason,
    }
