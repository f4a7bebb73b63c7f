"""Whose a place of shards is: a run's name in it, and a lock while somebody works there.

On a disk the lock is the kernel's, and ends with the process, however it ends. An address has no such locks, and neither has
every file system: there a file says who works, since when. One that a killed process of this machine left is taken over; of
another machine's nobody can tell, and whoever knows is told which file to delete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from personaspace import json_text
from personaspace.errors import RunError, RunLocked, RunMismatch
from personaspace.files import Place, reason_of

log = logging.getLogger("personaspace")

LOCK, OWNER = "lock.json", "owner.json"

_in_hand: set[str] = set()
"""What this process holds: a lock with its number may be one that a process before it left."""


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a folder. Raises `RunLocked` with who holds it, `RunError` where it can't be made."""
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as e:
        raise RunError(f"{folder}: cannot be used as a run's folder: {reason_of(e)}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise RunLocked(f"{folder} is in use by {holder or 'another process'}") from None
            log.warning(
                "%s: its file system has no locks (%s): the file %s stands in for one", folder, reason_of(e), LOCK
            )
            with leased(Place(folder)):
                yield
            return
        # Who is refused is told this; on a full disk that cannot be written, and the lock holds all the same.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def leased(place: Place) -> Iterator[None]:
    """Keeps a second process out of a place by a file in it. Raises `RunLocked` with who holds it."""
    if place.has(LOCK) and (holder := _holder(place)) is not None:
        raise RunLocked(
            f"{place.root} is in use by process {holder['process']} on {holder['host']} since {holder['since']}; "
            f"if that one is gone, delete {place.root}/{LOCK}"
        )
    token = secrets.token_hex(8)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    lock = {"process": os.getpid(), "host": os.uname().nodename, "since": since, "token": token}
    place.write(LOCK, json.dumps(lock).encode())
    # Two that came at once have both written; who reads back another's came first, and goes.
    if (holder := _holder(place)) is not None:
        raise RunLocked(
            f"{place.root} is in use by process {holder['process']} on {holder['host']}, which came at the same time"
        )
    _in_hand.add(token)
    try:
        yield
    finally:
        _in_hand.discard(token)
        with contextlib.suppress(RunError):
            if json_text.parse(place.read(LOCK).to_pybytes().decode()).get("token") == token:
                place.remove(LOCK)


def _holder(place: Place) -> dict[str, Any] | None:
    """Who holds a place by its file; None where that one is gone, or it is this process' own file."""
    try:
        lock = json_text.parse(place.read(LOCK).to_pybytes().decode())
        process, host = int(lock["process"]), str(lock["host"])
        shown = {name: json_text.shown(lock[name]) for name in ("host", "since")}
        holder = {"process": process, "token": lock["token"], **shown}
    except (ValueError, KeyError, TypeError, OverflowError):
        return None  # whole files are written, so that nobody's process left this one
    if host != os.uname().nodename:
        return holder
    if process == os.getpid():
        return holder if holder["token"] in _in_hand else None
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # no process has such a number
        return None
    except PermissionError:
        pass
    return holder


def claim(place: Place, manifest: Mapping[str, Any]) -> None:
    """Writes a run's name into a place, or sees that it stands there. Raises `RunMismatch` where the place is another's: then
    nothing in it is touched."""
    config = json.dumps(manifest["config"], sort_keys=True)
    name = {"run": manifest["config_hash"], "config": hashlib.sha256(config.encode()).hexdigest()}
    if place.has(OWNER):
        try:
            owner = json_text.parse(place.read(OWNER).to_pybytes().decode())
        except ValueError:
            owner = None
        if owner == name:
            return
        same_run = isinstance(owner, dict) and owner.get("run") == name["run"]
        # Until a reply was given, how they are to be asked for may change.
        if not (same_run and not place.names("responses")):
            raise RunMismatch(
                f"{place.root} holds another run's shards; give another place for shards, and nothing of it is touched"
            )
    elif PurePosixPath(place.root).name != manifest["config_hash"]:
        raise RunMismatch(
            f"{place.root}: expected a place with this run's name, or one that ends in {manifest['config_hash']}; it is "
            "left as it is, give another place for shards"
        )
    place.write(OWNER, json.dumps(name).encode())
