"""How a server runs: its limits, and who may use it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from personaspace.errors import UsageError

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Settings:
    """rows: replies decoded together; queue: requests' replies that may wait for a place; max_tokens, max_messages, max_n,
    max_body: a request's limits, the last in bytes; context: tokens of a prompt and its reply, None for as many as the model
    and its memory have room for; keys: SHA-256 digests of who may use it, none for everybody; origins: who may call from
    another page; record: a file that conversations are written to, None for none."""

    rows: int = 16
    queue: int = 64
    max_tokens: int = 1024
    max_messages: int = 200
    max_n: int = 8
    max_body: int = 1 << 20
    context: int | None = None
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = field(default=("127.0.0.1", "localhost", "[::1]"))
    record: Path | None = None

    def allows(self, key: str) -> bool:
        """Whether a key is one of those that may; takes as long for any wrong one."""
        digest = hash_key(key)
        return sum(hmac.compare_digest(digest, allowed) for allowed in self.keys) > 0  # every one is compared


def hash_key(key: str) -> str:
    """A key's SHA-256 digest, as a file of keys holds it."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str | Path) -> tuple[str, ...]:
    """Digests from a file, one a line, # for comments. Raises `UsageError` with the line that is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--api-keys {path}: cannot be read: {e}") from None
    digests = []
    for number, line in enumerate(lines, 1):
        digest = line.split("#")[0].strip()
        if digest and not _DIGEST.fullmatch(digest):
            raise UsageError(
                f"--api-keys {path}, line {number}: expected a SHA-256 digest (printf %s KEY | sha256sum), found something else"
            )
        if digest:
            digests.append(digest)
    if not digests:
        raise UsageError(f"--api-keys {path}: no key in it")
    return tuple(digests)


def check_exposure(host: str, keys: Sequence[str]) -> None:
    """Raises `UsageError` where anybody on the network could use the server."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not keys:
        raise UsageError(f"--host {host} can be reached from other machines: give --api-key or --api-keys as well")
