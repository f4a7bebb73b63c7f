"""A run's or an experiment's folder: its configuration, scores and lock; and a map's, which has shards as well.

Whatever it holds goes on from where it stands; only the configuration must stay the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from personaspace import json_text
from personaspace.engines.prompts import Design, Sampling
from personaspace.errors import RunError, RunMismatch, invalid_reason
from personaspace.files import LEFT_OVER, Place, read_rows, reason_of, table_bytes, write_whole
from personaspace.runs import digests
from personaspace.runs.places import claim, folder_locked, leased
from personaspace.runs.shards import Shards

FORMAT = 1
ONSETS, TRAITS = "onsets", "traits"


class _Manifest(BaseModel):
    """What every `run.json` has; of a map also where its shards lie and what was asked, by round."""

    model_config = ConfigDict(extra="allow", strict=True)
    config: dict[str, Any]
    config_hash: str
    version: str = ""
    shards: str | None = None
    rounds: list[dict[str, int]] = []
    onset_rounds: list[dict[str, int]] = []
    history: list[dict[str, Any]] = []
    onset_history: list[dict[str, Any]] = []


class _Named(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    id: str


class _CatalogConfig(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    fingerprint: str
    roles: list[str]
    questions: int


class _MapConfig(BaseModel):
    """What of a map's configuration is read again."""

    model_config = ConfigDict(extra="allow")
    model: _Named
    catalog: _CatalogConfig
    design: Design
    sampling: Sampling


class _MapManifest(_Manifest):
    config: _MapConfig  # type: ignore[assignment]


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


SCORED = pa.schema(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("score", pa.int32(), nullable=False),
        pa.field("expected", pa.float32(), nullable=False),
    ]
)
"""What stands in every file of scores."""


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

    schema: type[_Manifest] = _Manifest

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.responses, self.scores = self.folder / "responses", self.folder / "scores"
        self.inside = [self.responses, self.scores]
        self.notes: list[str] = []  # what a user should be told of it

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
        except OSError as e:
            raise RunError(f"{self.folder}: cannot be used as a run's folder: {reason_of(e)}") from None
        with ExitStack() as locks:
            locks.enter_context(folder_locked(self.folder))
            self._clean(locks)
            yield

    def _clean(self, locks: ExitStack) -> None:
        """Takes away what a killed process left half done."""
        for folder in (self.folder, *self.inside):
            for path in folder.glob(".*.tmp"):
                if LEFT_OVER.fullmatch(path.name):
                    with suppress(OSError):  # what cannot be taken away is in nobody's way
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
                f"{path}: found format {json_text.shown(manifest.get('format'))}, expected {FORMAT}; written by another "
                "version?"
            )
        try:
            self.schema.model_validate(manifest)
        except ValidationError as e:
            first = e.errors()[0]
            where = json_text.shown(".".join(map(str, first["loc"])), 80)
            raise RunError(
                f"{path}: {where}: {invalid_reason(first)}, found {json_text.shown(first['input'])}; is it a run's "
                "folder?"
            ) from None
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
            version = about.get("version")
            if version and version not in (manifest.get("version"), *manifest.get("versions", ())):
                # Once: from then on the run is of both.
                begun_by = manifest.get("version") or "of another version"
                self.notes.append(f"{self.folder}: begun by personaspace {begun_by}, gone on with by {version}")
                manifest["versions"] = [*manifest.get("versions", ()), version]
                self.update(manifest)
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
        """(role, index) → the score a judge gave. Raises `RunError` where that is not what was written."""
        path = self.scores / f"{judge}.parquet"
        if not path.is_file():
            return {}
        if fault := self._scores_fault(judge):
            raise RunError(f"{fault}; delete it, and the responses are scored again")
        rows = read_rows(path, SCORED, "the responses are scored again")
        return {
            (r["role"], r["index"]): KeptScore(r["score"], r["expected"], r.get("reason") or "", r.get("rubric"))
            for r in rows
        }

    def keep_scores(self, judge: str, scores: Mapping[tuple[str, int], tuple[Any, ...]]) -> None:
        """Writes all scores of a judge anew; each is a `KeptScore`, or its beginning."""
        rows = [{"role": k[0], "index": k[1], **KeptScore(*v)._asdict()} for k, v in sorted(scores.items())]
        fields = [("role", pa.string()), ("index", pa.int32()), ("score", pa.int32()), ("expected", pa.float32())]
        fields += [("reason", pa.string()), ("rubric", pa.string())]
        data = table_bytes(pa.Table.from_pylist(rows, schema=pa.schema(fields)))
        digests.write_recorded(Place(self.scores), f"{judge}.sha256", f"{judge}.parquet", data)

    def drop_broken_scores(self, judge: str) -> str | None:
        """Lets go of a judge's scores where they are not what was written, and says so; None where they are well."""
        fault = self._scores_fault(judge)
        if fault is None:
            try:
                self.scores_of(judge)
            except RunError as e:
                fault = str(e).partition("; ")[0]
        if fault:
            for name in (f"{judge}.parquet", f"{judge}.sha256"):
                (self.scores / name).unlink(missing_ok=True)
        return fault

    def drop_scores(self, keys: Collection[tuple[str, int]]) -> None:
        """Lets go of what all judges said of some responses, by (role, index)."""
        for path in self.scores.glob("*.parquet"):
            scores = {} if self.drop_broken_scores(path.stem) else self.scores_of(path.stem)
            if not scores.keys().isdisjoint(keys):
                self.keep_scores(path.stem, {key: score for key, score in scores.items() if key not in keys})

    def _scores_fault(self, judge: str) -> str | None:
        return digests.fault_of(Place(self.scores), f"{judge}.sha256", f"{judge}.parquet")


class Run(Folder, Shards):
    """A map's folder: shards, and the space and report made of them. The shards lie in it, or where `run.json` says."""

    schema = _MapManifest

    def __init__(self, folder: str | Path) -> None:
        Folder.__init__(self, folder)
        elsewhere = self.manifest().get("shards") if self.exists else None
        Shards.__init__(self, Place(elsewhere or self.folder), self.folder / ".at-hand")
        self._locks: ExitStack | None = None  # while the folder is locked
        self._leased = ""

    @property
    def onsets(self) -> Shards:
        """The shards of prompts that were read before the first word, beside those of the replies."""
        return self._beside(ONSETS)

    @property
    def trait_onsets(self) -> Shards:
        """The same of traits' prompts."""
        return self._beside(TRAITS)

    def _beside(self, name: str) -> Shards:
        root = self.folder if self.place.local is not None else self.place.root
        return Shards(Place(f"{root}/{name}"), self.folder / ".at-hand" / name)

    @property
    def space_file(self) -> Path:
        return self.folder / "space.safetensors"

    def lies(self, manifest: dict[str, Any], address: str | None) -> None:
        """Says where the shards lie: at an address, under the configuration's hash, or with None where they do. Raises
        `RunMismatch` where the run's lie somewhere else already, or another's there; `RunLocked` where somebody works there."""
        if address:
            # Under the hash, several runs may share an address.
            place = f"{address.rstrip('/')}/{manifest['config_hash']}"
            present_place = manifest.get("shards", self.folder if self.done() else place)
            if present_place != place:
                raise RunMismatch(
                    f"{self.folder}: its shards lie in {present_place}, not in {place}; give the same place for shards"
                )
            self.place = Place(place)
            self._take_place(manifest)
            manifest["shards"] = place
            self.update(manifest)
        else:
            self._take_place(manifest)

    def _take_place(self, manifest: Mapping[str, Any]) -> None:
        """Keeps others out of the place of shards, and sees that it is this run's. The folder's own lock is one of the place in
        it."""
        if self.place.local is not None or self._locks is None:
            return
        if self._leased != self.place.root:
            self._locks.enter_context(leased(self.place))
            self._leased = self.place.root
            self._locks.callback(self._let_go)
        claim(self.place, manifest)

    def _let_go(self) -> None:
        self._leased = ""

    def _clean(self, locks: ExitStack) -> None:
        super()._clean(locks)
        self._locks = locks
        shutil.rmtree(self.folder / ".at-hand", ignore_errors=True)
        if self.exists:
            self._take_place(self.manifest())
        self.clean_shards()
        self.onsets.clean_shards()
        self.trait_onsets.clean_shards()
