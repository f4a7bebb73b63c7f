"""Which bytes were written: a list of SHA-256 digests beside files, so that one that changed on the disk is found and named.

A list is a text as `sha256sum` writes it (`cd RUN && sha256sum -c digests/part-00000.sha256`), and is written before the last
of its files: where that one stands, so does the list. A file that is written anew stands in it twice meanwhile, as it was
and as it will be.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from personaspace.errors import RunError
from personaspace.files import Place, reason_of

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")

Recorded = Mapping[str, Sequence[str]]
"""The digests that a file may have, by its name."""


def digest_of(data: bytes) -> str:
    """A file's digest, from its bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_at(place: Place, name: str) -> str | None:
    """A file's digest; None where it is missing."""
    if place.local is None:
        return digest_of(place.read(name).to_pybytes()) if place.has(name) else None
    try:
        with open(place.local / name, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise RunError(f"{place.local / name}: cannot be read: {reason_of(e)}") from None


def record(place: Place, list_name: str, digests: Recorded) -> None:
    """Writes a list."""
    lines = [f"{digest}  {name}\n" for name, each in digests.items() for digest in each]
    place.write(list_name, "".join(lines).encode())


def recorded(place: Place, list_name: str) -> Recorded | None:
    """What a list says; None where there is none: what it would be of was written before there were any. Raises `ValueError`
    for one that is broken."""
    if not place.has(list_name):
        return None
    digests: dict[str, list[str]] = {}
    for line in place.read(list_name).to_pybytes().decode().splitlines():
        if (match := _LINE.fullmatch(line)) is None:
            raise ValueError(f"{list_name} is not a list of digests")
        digests.setdefault(match[2], []).append(match[1])
    return digests


def write_recorded(place: Place, list_name: str, name: str, data: bytes) -> None:
    """Writes a file that has a list of its own, whole or not at all, so that one of its digests is the file's at any moment."""
    try:
        earlier = list((recorded(place, list_name) or {}).get(name, ()))[-1:]
    except ValueError:
        earlier = []
    if not earlier and (present := digest_at(place, name)):
        earlier = [present]
    record(place, list_name, {name: [*earlier, digest_of(data)]})
    place.write(name, data)


def fault_of(place: Place, list_name: str, name: str) -> str | None:
    """What is wrong with such a file, in words; None where nothing is, or nothing can be told."""
    try:
        digests = recorded(place, list_name)
    except ValueError as e:
        return f"{place.root}/{e}"
    digest = digest_at(place, name)
    if digest is None:
        return f"{place.root}/{name} is missing" if digests else None
    if digests is not None and digest not in digests.get(name, ()):
        return f"{place.root}/{name} is not what was written"
    return None
