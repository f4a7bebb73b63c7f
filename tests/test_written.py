"""What was written is what is read: files that changed, are missing or foreign, places of others, full and odd disks. Each has
one true line, and is done again where it can be."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import make_model, make_tokenizer
from personaspace.api import calibrate, options_of
from personaspace.catalog import load_catalog
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import PersonaSpaceError, RunError, RunLocked, RunMismatch, SpaceError
from personaspace.files import Place, _warn_unflushed, write_whole
from personaspace.holding.calibrate import projections_while_mapping
from personaspace.judges.rules import RulesJudge
from personaspace.mapping.mapper import Mapper
from personaspace.runs import Run, Shards
from personaspace.runs.places import leased
from personaspace.space import PersonaSpace
from personaspace.watcher import Watcher

OPTIONS = {
    "design": {"per_role": 3, "default_responses": 16},
    "prompts": {"per_role": 4, "default_responses": 12},
    "sampling": {"max_new_tokens": 5},
    "min_responses": 1,
}


class Notes(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=16)


@pytest.fixture
def mapped(engine, small_catalog, monkeypatch):
    """Maps in small shards; returns what was noted."""
    monkeypatch.setattr("personaspace.mapping.stages.SHARD", 8)
    monkeypatch.setattr("personaspace.mapping.stages.ONSET_SHARD", 16)

    def map_(folder, judge=None, **options) -> list[str]:
        notes = Notes()
        chosen = options_of(**{**OPTIONS, **options})
        Mapper(engine, load_catalog(small_catalog), folder, chosen, notes).map(judge)
        return [line for line in notes.lines if "no caps yet" not in line and "caps: replaying" not in line]

    return map_


# -- what was written ------------------------------------------------------------------------------------------------


def flipped(path: Path, seed: int) -> None:
    """One bit of a file, anywhere in it."""
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(bytes(data))


def cut(path: Path, seed: int) -> None:
    """A file's beginning."""
    data = path.read_bytes()
    path.write_bytes(data[: random.Random(seed).randrange(len(data))])


def missing(path: Path, seed: int) -> None:
    path.unlink()


FILES = [
    "responses/part-00001.parquet",
    "activations/part-00002.safetensors",
    "projections/part-00001.safetensors",
    "digests/part-00001.sha256",
    "onsets/responses/part-00001.parquet",
    "onsets/activations/part-00001.safetensors",
    "scores/rules.parquet",
]


def finished(folder: Path, engine, catalog: Path, judge=None, **options) -> Path:
    """A run that was left alone, in small shards."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("SHARD", 8), ("ONSET_SHARD", 16), ("FOLD", 1)):
            patch.setattr(f"personaspace.mapping.stages.{name}", size)
        chosen = options_of(**{**OPTIONS, **options})
        Mapper(engine, load_catalog(catalog), folder, chosen, Watcher()).map(judge)
    return folder


@pytest.fixture(scope="module")
def well(tmp_path_factory, engine, small_catalog):
    """A finished run, of which a copy is broken."""
    return finished(tmp_path_factory.mktemp("well") / "run", engine, small_catalog, RulesJudge())


SUMS = {"keep": "sums", "blocks": 4}


@pytest.fixture(scope="module")
def summed(tmp_path_factory, engine, small_catalog):
    """Another, of sums."""
    return finished(tmp_path_factory.mktemp("summed") / "run", engine, small_catalog, **SUMS)


def figures(folder: Path) -> dict[str, object]:
    space = PersonaSpace.load(folder)
    return {name: tensor.numpy().tobytes() for name, tensor in space.tensors.items()}


def replies(folder: Path) -> list[dict]:
    return [row for shard in Run(folder).done() for row in Run(folder).read(shard).to_pylist()]


@pytest.mark.long
@pytest.mark.parametrize("harm", [flipped, cut, missing])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_was_written_is_named_and_done_again_by_the_same_command(
    tmp_path, well, mapped, name, harm
):
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    before, texts = figures(folder), replies(folder)
    harm(folder / name, seed=len(name))
    lines = mapped(folder, judge=RulesJudge())
    if harm is missing and "digests/" in name:
        assert lines == []  # as of an earlier version, which gets them
    else:
        assert len(lines) == 1
        assert (Path(name).stem if "digests/" in name else name) in lines[0]
        assert "again" in lines[0]
        assert len(lines[0].splitlines()) == 1
    assert figures(folder) == before
    assert replies(folder) == texts
    assert (folder / name).is_file()
    if harm is flipped:  # a file of each kind that was done again is well, whatever had harmed it
        assert mapped(folder, judge=RulesJudge()) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_no_flipped_bit_of_a_shard_changes_a_figure(tmp_path, well, mapped, seed):
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    before = figures(folder)
    (folder / "space.safetensors").unlink()  # so that it is made of what lies there
    shards = sorted(folder.glob("**/part-*"))
    flipped(shards[random.Random(seed).randrange(len(shards))], seed)
    assert len(mapped(folder, judge=RulesJudge())) == 1
    assert figures(folder) == before


@pytest.mark.long
@pytest.mark.parametrize("harm", [flipped, cut, missing])
@pytest.mark.parametrize("name", ["sums/counts.safetensors", "onset-sums/00*-001.safetensors"])
def test_sums_that_are_not_what_was_written_are_made_again(tmp_path, summed, mapped, monkeypatch, name, harm):
    monkeypatch.setattr("personaspace.mapping.stages.FOLD", 1)
    folder = tmp_path / "run"
    shutil.copytree(summed, folder)
    before = PersonaSpace.load(folder)
    (path,) = folder.glob(name)
    harm(path, seed=3)
    lines = mapped(folder, **SUMS)
    assert path.parent.name in lines[0]
    assert "the sums are made again" in lines[0]
    after = PersonaSpace.load(folder)
    for tensor in ("axis", "role_vectors"):
        assert torch.allclose(after.tensors[tensor], before.tensors[tensor], atol=1e-5)
    assert mapped(folder, **SUMS) == []


@pytest.mark.long
def test_activations_that_stay_beside_the_sums_are_asked_again_where_they_are_missing(tmp_path, mapped):
    folder, options = tmp_path / "run", {"keep": "layers:1:2", "blocks": 4}
    mapped(folder, **options)
    (folder / "activations" / "part-00001.safetensors").unlink()
    (line,) = mapped(folder, **options)
    assert "activations/part-00001.safetensors is missing" in line
    assert Run(folder).tensors(1, "activations").shape[1] == 1
    assert mapped(folder, **options) == []


@pytest.mark.long
def test_a_run_without_digests_goes_on_gets_them_and_is_then_protected(tmp_path, well, mapped):
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    for path in (*folder.glob("**/digests"), *folder.glob("scores/*.sha256")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert mapped(folder, judge=RulesJudge()) == []
    assert sorted(p.name for p in (folder / "digests").iterdir()) == [
        f"part-{k:05d}.sha256" for k in Run(folder).done()
    ]
    flipped(folder / "activations" / "part-00000.safetensors", 1)
    assert len(mapped(folder, judge=RulesJudge())) == 1


def test_digests_are_those_of_sha256sum(well):
    for path in well.glob("**/digests/*.sha256"):
        for line in path.read_text().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256((path.parent.parent / name).read_bytes()).hexdigest() == digest


def test_calibration_is_not_made_from_what_was_not_written(tmp_path, well):
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    flipped(folder / "projections" / "part-00000.safetensors", 5)
    with pytest.raises(RunError, match="found other content than was written; the map's command does it again"):
        projections_while_mapping(Run(folder), torch.ones(3, 32))


def test_calibration_is_not_made_from_a_run_that_lacks_a_shard(tmp_path, well):
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    (folder / "responses" / "part-00001.parquet").unlink()
    for _ in range(2):  # also after it was locked, and tidied
        with pytest.raises(
            RunError, match=r"responses/part-00001\.parquet is missing; the map's command does it again"
        ):
            calibrate(folder)
        with Run(folder).locked():
            pass


# -- the space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_bit_flipped_anywhere_in_a_spaces_file_is_refused_in_one_line(tmp_path, well, seed):
    shutil.copy(well / "space.safetensors", tmp_path)
    flipped(tmp_path / "space.safetensors", seed)
    with pytest.raises(SpaceError) as problem:
        PersonaSpace.load(tmp_path / "space.safetensors")
    assert len(str(problem.value).splitlines()) == 1


@pytest.mark.parametrize("compact", [False, True])
def test_a_flipped_bit_that_leaves_a_sound_number_is_named_in_every_tensor(tmp_path, well, compact):
    space = PersonaSpace.load(well)
    (space.compact() if compact else space).save(tmp_path / "s.safetensors")
    whole = (tmp_path / "s.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for name, entry in json.loads(whole[8 : 8 + size]).items():
        if name != "__metadata__":
            changed = bytearray(whole)
            changed[8 + size + entry["data_offsets"][0]] ^= 1
            (tmp_path / "s.safetensors").write_bytes(changed)
            with pytest.raises(
                SpaceError, match=r"s\.safetensors: found other content than was written; map .* or fetch"
            ):
                PersonaSpace.load(tmp_path / "s.safetensors")


def test_a_space_without_a_digest_is_read_as_it_stands(tmp_path, well):
    with safe_open(well / "space.safetensors", framework="pt") as f:
        tensors, metadata = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()  # noqa: SIM118 - not a dict
    save_file(tensors, tmp_path / "s.safetensors", {"personaspace": metadata["personaspace"]})
    assert PersonaSpace.load(tmp_path / "s.safetensors").meta == PersonaSpace.load(well).meta


@pytest.mark.long
def test_a_space_that_is_not_what_was_written_is_named_and_made_again_by_the_same_command(tmp_path, well, mapped):
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    before = figures(folder)
    flipped(folder / "space.safetensors", 7)
    (line,) = mapped(folder, judge=RulesJudge())
    assert re.fullmatch(r".*/space\.safetensors: .*; it is made again, without what calibration has added to it", line)
    assert figures(folder) == before
    assert mapped(folder, judge=RulesJudge()) == []


# -- foreign files ---------------------------------------------------------------------------------------------------

STRAY = [
    "part-00001 (copy).parquet",
    "part-1.parquet",
    "part-٠٠٠٠١.parquet",
    "part-000001.parquet",
    "part-x.parquet",
    "part-.parquet",
    "notes.parquet",
    ".DS_Store",
]


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_file_among_the_shards_is_ignored_and_left(tmp_path, well, name):
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    done = Run(folder).done()
    for inside in ("responses", "activations"):
        (
            folder / inside / name.replace("parquet", "safetensors" if inside == "activations" else "parquet")
        ).write_bytes(b"mine")
    (folder / ".notes.tmp").write_bytes(b"mine")
    with Run(folder).locked():
        assert Run(folder).done() == done
    assert (folder / "responses" / name).read_bytes() == b"mine"
    assert (folder / ".notes.tmp").exists()


NO_MANIFESTS = [
    "[]",
    "null",
    "3",
    '"run"',
    "{}",
    "{",
    "\ufeff{}",
    '{"format": 2}',
    '{"format": 1}',
    '{"format": 1, "config": [], "config_hash": "a"}',
    '{"format": 1, "config": {}, "config_hash": 3}',
    '{"format": 1, "config": {}, "config_hash": "a", "rounds": {"default": 1}}',
    '{"format": 1, "config": {}, "config_hash": "a", "rounds": [{"default": "many"}]}',
    '{"format": 1, "config": {}, "config_hash": "a", "shards": 3}',
    '{"format": 1, "config": {}, "config_hash": "a", "shards": ["s3://x"]}',
]


@pytest.mark.parametrize("text", NO_MANIFESTS)
def test_a_run_json_that_is_none_is_one_line(tmp_path, tiny_folder, small_catalog, text, monkeypatch, capsys):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError) as problem:
        Run(tmp_path)
    assert "run.json" in str(problem.value)
    assert len(str(problem.value).splitlines()) == 1
    assert (tmp_path / "run.json").read_text() == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["format", "config", "config_hash", "version", "shards", "rounds", "onset_rounds", "history"]), JSON
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_stands_in_a_run_json_it_is_read_or_refused_in_one_line(tmp_path, well, name, value):
    manifest = {**json.loads((well / "run.json").read_text()), name: value}
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    try:
        Run(tmp_path).manifest()
    except PersonaSpaceError as problem:
        assert len(str(problem).splitlines()) == 1  # noqa: PT017 - or it is read


# -- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_of_another_version_is_noted_once(tmp_path, well, mapped):
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**manifest, "version": "0.0.9"}))
    (line,) = mapped(folder, judge=RulesJudge())
    assert re.fullmatch(r".*: begun by personaspace 0\.0\.9, gone on with by \d.*", line)
    assert mapped(folder, judge=RulesJudge()) == []


# -- places ----------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.long
def test_a_run_json_that_names_anothers_place_touches_nothing_there(tmp_path, well, mapped):
    theirs = tmp_path / "theirs"
    mapped(tmp_path / "other", shards=f"file://{theirs}", seed=3)
    (place,) = theirs.iterdir()
    # What a running process of theirs would have there meanwhile.
    (place / "activations" / "part-00099.safetensors").write_bytes(b"not whole yet")
    (place / "responses" / ".part-00098.parquet.host-1.tmp").write_bytes(b"half")
    before = contents(place)
    folder = tmp_path / "run"
    shutil.copytree(well, folder)
    manifest = json.loads((folder / "run.json").read_text())
    for config_hash in (manifest["config_hash"], place.name):
        changed = {**manifest, "config_hash": config_hash, "shards": f"file://{place}"}
        (folder / "run.json").write_text(json.dumps(changed))
        with pytest.raises(RunMismatch, match="holds another run's shards"):
            mapped(folder, judge=RulesJudge())
        assert contents(place) == before


@pytest.mark.long
def test_an_unnamed_place_that_is_not_of_this_configuration_is_left_as_it_is(tmp_path, well, mapped):
    place, folder = tmp_path / "pictures", tmp_path / "run"
    (place / "activations").mkdir(parents=True)
    (place / "activations" / "part-00001.safetensors").write_bytes(b"theirs")
    shutil.copytree(well, folder)
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**manifest, "shards": f"file://{place}"}))
    with pytest.raises(RunMismatch, match="expected a place with this run's name"):
        mapped(folder, judge=RulesJudge())
    assert contents(place) == {"activations/part-00001.safetensors": b"theirs"}


@pytest.mark.long
def test_two_runs_share_an_address_and_each_keeps_its_own(tmp_path, mapped):
    address = f"file://{tmp_path / 'far'}"
    mapped(tmp_path / "one", shards=address)
    mapped(tmp_path / "two", shards=address, seed=1)
    assert len(list((tmp_path / "far").iterdir())) == 2
    one = replies(tmp_path / "one")
    assert mapped(tmp_path / "one", shards=address) == mapped(tmp_path / "two", shards=address, seed=1) == []
    assert replies(tmp_path / "one") == one != replies(tmp_path / "two")


@pytest.mark.long
@pytest.mark.parametrize("address", ["file://{folder}", "memory://{name}"])
def test_while_a_run_works_in_a_place_the_same_run_from_another_folder_is_told_who_does(tmp_path, mapped, address):
    address = address.format(folder=tmp_path / "far", name=tmp_path.name)
    mapped(tmp_path / "one", shards=address)
    with (
        Run(tmp_path / "one").locked(),
        pytest.raises(RunLocked, match=rf"in use by process {os.getpid()} on .* since .*; if that one is gone, delete"),
    ):
        mapped(tmp_path / "two", shards=address)
    mapped(tmp_path / "two", shards=address)


@pytest.mark.parametrize(
    ("process", "host", "free"),
    [("gone", "here", True), ("there", "here", False), ("gone", "elsewhere", False), ("broken", "", True)],
)
def test_a_lock_that_a_dead_process_of_this_machine_left_is_taken_over_and_no_other(tmp_path, process, host, free):
    place = Place(f"file://{tmp_path}")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = {
        "process": ended.pid if process == "gone" else os.getppid(),
        "host": os.uname().nodename if host == "here" else "another",
        "since": "now",
        "token": "a",
    }
    place.write("lock.json", b"{" if process == "broken" else json.dumps(lock).encode())
    if free:
        with leased(place):
            assert place.has("lock.json")
        assert not place.has("lock.json")
    else:
        with pytest.raises(RunLocked), leased(place):
            pass
        assert place.has("lock.json")


# -- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB; skipped where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["/bin/umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "full", "wb", buffering=0) as f:
        while True:
            f.write(b"x" * 4096)


def test_on_a_real_full_disk_a_lock_is_taken_and_what_is_written_is_refused_in_one_line(small_disk):
    run = Run(small_disk / "run")
    with run.locked():
        fill(small_disk)
    with run.locked(), pytest.raises(RunError, match=r"cannot write .*run\.json: the disk is full"):
        run.begin({"big": "x" * 9000}, {})
    assert not list(run.folder.glob(".*.tmp"))
    with pytest.raises(RunError, match="the disk is full"):
        write_whole(small_disk / "new" / "file", b"x" * 9000)


def test_what_cannot_be_written_where_there_is_room_is_not_told_to_make_room(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*: File exists; .* give a place that can be written") as problem:
        write_whole(tmp_path / "file" / "below", b"x")
    assert "make room" not in str(problem.value)


def test_on_a_full_disk_a_lock_still_keeps_others_out(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.pwrite", full)
    with Run(tmp_path).locked(), pytest.raises(RunLocked, match="in use by another process"), Run(tmp_path).locked():
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_lock_that_cannot_be_made_is_one_true_line(tmp_path, monkeypatch, number):
    opened = os.open

    def refused(path, *rest):
        if str(path).endswith(".lock"):
            raise OSError(number, os.strerror(number))
        return opened(path, *rest)

    monkeypatch.setattr("os.open", refused)
    reason = "the disk is full" if number in (errno.ENOSPC, errno.EDQUOT) else os.strerror(number)
    with pytest.raises(RunError, match=f"cannot be used as a run's folder: {reason}"), Run(tmp_path).locked():
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_a_file_system_has_no_locks_a_file_stands_in_for_one_and_it_is_said(
    tmp_path, monkeypatch, caplog, number
):
    def unsupported(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with Run(tmp_path).locked():
        assert "has no locks" in caplog.text
        with pytest.raises(RunLocked, match=f"in use by process {os.getpid()}"), Run(tmp_path).locked():
            pass
    with Run(tmp_path).locked():
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_where_a_file_system_flushes_no_folders_a_file_is_written_and_it_is_said_once(
    tmp_path, monkeypatch, caplog, number
):
    _warn_unflushed.cache_clear()
    flush = os.fsync

    def files_alone(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        flush(handle)

    monkeypatch.setattr("os.fsync", files_alone)
    for k in range(3):
        write_whole(tmp_path / f"{k}", b"whole")
        assert (tmp_path / f"{k}").read_bytes() == b"whole"
    assert len([r for r in caplog.records if "flushes no folders" in r.message]) == 1
    number = errno.EIO
    with pytest.raises(RunError, match=os.strerror(errno.EIO)):
        write_whole(tmp_path / "lost", b"whole")


def test_a_full_disk_at_the_copies_of_shards_that_lie_elsewhere_is_one_line_and_nothing_stays(tmp_path, monkeypatch):
    far, near = Place(f"file://{tmp_path / 'far'}"), tmp_path / "near"
    shards = Shards(far, near)
    shards.write_tensors(0, torch.zeros(2, 3, 4), torch.zeros(2, 3))
    opened = open

    def full(path, mode="r", *rest, **more):
        if "w" in mode and str(near) in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, *rest, **more)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(RunError, match=r"cannot write .*near.*: the disk is full"), shards.at_hand([0]):
        pass
    assert not near.exists()


@pytest.mark.long
def test_the_same_run_with_other_prompts_from_another_folder_takes_no_shard_for_its_own(tmp_path, mapped):
    address = f"file://{tmp_path / 'far'}"
    mapped(tmp_path / "one", shards=address)
    (place,) = (tmp_path / "far").iterdir()
    before = contents(place)
    with pytest.raises(RunMismatch, match="shard 0 answers other prompts than this run asks"):
        mapped(tmp_path / "two", shards=address, prompts={"per_role": 6, "default_responses": 12})
    assert contents(place) == before


@pytest.mark.long
def test_another_process_is_told_who_works_in_a_place_and_a_killed_one_holds_nobody_up(tmp_path, mapped):
    address = f"file://{tmp_path / 'far'}"
    mapped(tmp_path / "one", shards=address)
    code = (
        "import sys, time\nfrom personaspace.runs import Run\n"
        "with Run(sys.argv[1]).locked():\n    print('locked', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "one")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RunLocked, match=f"in use by process {process.pid} on"):
            mapped(tmp_path / "two", shards=address)
    finally:
        process.kill()
        process.communicate()
    mapped(tmp_path / "two", shards=address)
    assert replies(tmp_path / "two") == replies(tmp_path / "one")


def test_every_promise_names_tests_that_are_there():
    folder = Path(__file__).parent
    lines = (folder.parent / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    first = lines.index("| fault | promise | held by |") + 2
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[first:]))
    assert len(rows) > 20
    for row in rows:
        names = re.findall(r"`(test_\w+)::(test_\w+)`", row)
        assert names, row
        for file, name in names:
            assert f"def {name}(" in (folder / f"{file}.py").read_text(encoding="utf-8"), f"{file}::{name}"
