"""A run's folder on the disk: its configuration, shards, scores and lock; it knows nothing of models or statistics.

A shard is a parquet file of responses and a safetensors file of activations. Each is written under another name, flushed
and renamed, the parquet last: where it stands, the shard is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from personaspace.engines import Response
from personaspace.errors import RunError, RunLocked, RunMismatch

FORMAT = 1

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


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all, also after a power cut. Raises `RunError` on a full disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        why = "the disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror
        raise RunError(
            f"cannot write {path}: {why}; what was finished is whole, make room and run the same command"
        ) from None


def write_table(path: Path, table: pa.Table) -> None:
    """A parquet file, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two configurations differ in, as `name: old → new`."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {_short(a)} → {_short(b)}")
    return found


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 4:
        return f"{len(value)} entries ({value[0]}, …)"
    return str(value)


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
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.folder}: no run.json in it; is it a run's folder?") from None
        except (OSError, ValueError) as e:
            raise RunError(f"{path}: cannot be read: {e}") from None
        if found.get("format") != FORMAT:
            raise RunError(
                f"{path}: found format {found.get('format')}, expected {FORMAT}; written by another version?"
            )
        return found

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

    def scores_of(self, judge: str) -> dict[tuple[str, int], tuple[int, float]]:
        """(role, index) → the score a judge gave and the expected one."""
        path = self.scores / f"{judge}.parquet"
        if not path.is_file():
            return {}
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as e:
            raise RunError(f"{path}: cannot be read ({e}); delete it, and the responses are scored again") from None
        return {(r["role"], r["index"]): (r["score"], r["expected"]) for r in rows}

    def keep_scores(self, judge: str, scores: Mapping[tuple[str, int], tuple[int, float]]) -> None:
        """Writes all scores of a judge anew."""
        rows = [{"role": k[0], "index": k[1], "score": v[0], "expected": v[1]} for k, v in sorted(scores.items())]
        fields = [("role", pa.string()), ("index", pa.int32()), ("score", pa.int32()), ("expected", pa.float32())]
        write_table(self.scores / f"{judge}.parquet", pa.Table.from_pylist(rows, schema=pa.schema(fields)))


class Run(Folder):
    """A map's folder: shards of responses with their activations, and the space and report made of them."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.activations = self.folder / "activations"
        self.inside.append(self.activations)

    @property
    def space_file(self) -> Path:
        return self.folder / "space.safetensors"

    def _clean(self) -> None:
        super()._clean()
        whole = {p.stem for p in self.responses.glob("part-*.parquet")}
        for path in self.activations.glob("part-*.safetensors"):
            if path.stem not in whole:
                path.unlink()

    def done(self) -> list[int]:
        """The numbers of the shards that are whole."""
        return sorted(int(p.stem.removeprefix("part-")) for p in self.responses.glob("part-*.parquet"))

    def write(self, shard: int, responses: Sequence[Response]) -> None:
        """Keeps a shard. The activations go first: a shard counts once its parquet file is there."""
        means = torch.stack([_tensor(r.activation) for r in responses]).contiguous()
        norms = torch.stack([_tensor(r.norms) for r in responses]).contiguous()
        write_whole(self._activations(shard), save({"activations": means, "norms": norms}))
        rows = [_row(r) for r in responses]
        write_table(self._responses(shard), pa.Table.from_pylist(rows, schema=SCHEMA))

    def read(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A shard's responses. Raises `RunError` for a file that is not one."""
        try:
            return pq.read_table(self._responses(shard), columns=list(columns) if columns else None)
        except (OSError, pa.ArrowException) as e:
            raise RunError(f"{self._responses(shard)}: cannot be read: {str(e).splitlines()[0]}") from None

    def tensors(self, shard: int, name: str, layers: slice = slice(None)) -> Tensor:
        """A shard's `activations` `[n, layers, hidden]` or `norms` `[n, layers]`, the layers of a slice alone."""
        path = self._activations(shard)
        try:
            with safe_open(path, framework="pt") as f:
                tensor: Tensor = f.get_slice(name)[:, layers]
                return tensor
        except (OSError, SafetensorError) as e:
            raise RunError(
                f"{path}: cannot be read ({e}); delete it and its parquet file, and run the same command"
            ) from None

    def _responses(self, shard: int) -> Path:
        return self.responses / f"part-{shard:05d}.parquet"

    def _activations(self, shard: int) -> Path:
        return self.activations / f"part-{shard:05d}.safetensors"


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
