"""A run's or an experiment's folder: its configuration, scores and lock; and a map's, which has shards as well.

Whatever it holds goes on from where it stands; only the configuration must stay the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from personaspace import json_text
from personaspace.errors import RunError, RunLocked, RunMismatch
from personaspace.files import Place, read_rows, write_table, write_whole
from personaspace.runs.shards import Shards

FORMAT = 1
ONSETS = "onsets"


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
            # Who is refused is told this; the lock itself is the kernel's, and ends with the process, however it ends.
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
            manifest: dict[str, Any] = json_text.parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.folder}: no run.json in it; is it a run's folder?") from None
        except (OSError, ValueError) as e:
            raise RunError(f"{path}: cannot be read: {e}") from None
        if not isinstance(manifest, dict):
            raise RunError(f"{path}: found a {type(manifest).__name__}, expected an object; is it a run's folder?")
        if manifest.get("format") != FORMAT:
            raise RunError(
                f"{path}: found format {manifest.get('format')}, expected {FORMAT}; written by another version?"
            )
        return manifest

    def begin(self, config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        """Starts a run, or goes on with the one that is there. `config` is what determines the responses.

        Raises `RunMismatch` with the differences where the folder holds a run of another configuration.
        """
        config = json.loads(
            json.dumps(config)
        )  # tuples become lists, as they are in a configuration that was read again
        if self.exists:
            manifest = self.manifest()
            if changed := differences(manifest["config"], config):
                raise RunMismatch(
                    f"{self.folder} holds a run of another configuration ({'; '.join(changed)}); "
                    "give the same options, or another folder"
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
        # Under the hash, several runs may share an address.
        place = f"{address.rstrip('/')}/{manifest['config_hash']}"
        present_place = manifest.get("shards", self.folder if self.done() else place)
        if present_place != place:
            raise RunMismatch(
                f"{self.folder}: its shards lie in {present_place}, not in {place}; give the same place for shards"
            )
        manifest["shards"] = place
        self.update(manifest)
        self.place = Place(place)

    def _clean(self) -> None:
        super()._clean()
        shutil.rmtree(self.folder / ".at-hand", ignore_errors=True)
        self.clean_shards()
        self.onsets.clean_shards()
