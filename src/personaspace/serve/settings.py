"""How a server runs: its limits, and who may use it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from personaspace.errors import UsageError

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""The names of this machine for itself."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ORIGIN = re.compile(r"https?://[\w.*-]+(:\d+)?", re.ASCII)


SECRET = "PERSONASPACE_WEBHOOK_SECRET"  # noqa: S105 - its name
"""The environment's name for what a webhook's messages are signed by."""

OnAlert = Literal["tell", "cap", "stop"]
ON_ALERT: tuple[OnAlert, ...] = get_args(OnAlert)
"""What is done to a conversation once an alert was raised in it."""


@dataclass(frozen=True)
class WatchSettings:
    """What a server looks at beside the axis, and what it does then. read: directions that replies are read along unless a
    request names others; alerts: as `parse_alerts` has them; webhook: where alerts are sent, with the secret by which they are
    signed."""

    read: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()
    on_alert: OnAlert = "tell"
    webhook: str | None = None
    secret: str = field(default="", repr=False)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> WatchSettings:
        """From JSON's values, and the secret from the environment."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values, secret=os.environ.get(SECRET, ""))


@dataclass(frozen=True)
class Settings:
    """rows: replies decoded together; queue: requests' replies that may wait for a place; max_tokens, max_messages, max_n,
    max_body: a request's limits, the last in bytes; max_values: members of all lists and objects of a body; context: tokens of
    a prompt and its reply, None for as many as the model and its memory have room for; keys: SHA-256 digests of who may use it,
    none for everybody; origins: who may call from another page; framed_by: whose pages may show the server's own in a frame;
    hosts: the names that the server goes by, an empty tuple for any (unless given, this machine's own, and any where there are
    keys); record: a file that conversations are written to, None for none.

    head_seconds: how long a connection may be open without a whole request's head; body_seconds: how long a body may take;
    unread_seconds: how long a client may leave what it is sent unread; keep_alive_seconds: after so many without an event a
    stream sends a comment; connections: open at once, None for what the process' limit of open files leaves room for.
    """

    rows: int = 16
    queue: int = 64
    max_tokens: int = 1024
    max_messages: int = 200
    max_n: int = 8
    max_body: int = 1 << 20
    max_values: int = 20_000
    context: int | None = None
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    framed_by: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    record: Path | None = None
    watch: WatchSettings = WatchSettings()
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    unread_seconds: float = 30.0
    keep_alive_seconds: float = 10.0
    connections: int | None = None

    def allows(self, key: str) -> bool:
        """Whether a key is one of those that may; takes as long for any wrong one."""
        digest = hash_key(key)
        if digest in EMPTY:
            return False
        return (
            sum(hmac.compare_digest(digest, allowed_digest) for allowed_digest in self.keys) > 0
        )  # every one is compared

    def goes_by(self, header: str) -> bool:
        """Whether a Host header names this server."""
        names = (() if self.keys else LOCAL_NAMES) if self.hosts is None else self.hosts
        return not names or host_name(header) in names


def host_name(header: str) -> str:
    """The name in a Host header, without its port.

    >>> host_name("Localhost:8000"), host_name("[::1]:8000"), host_name("example.org.")
    ('localhost', '[::1]', 'example.org')
    """
    name = header.strip().lower()
    end = name.find("]") + 1 if name.startswith("[") else name.find(":")
    return (name[:end] if end > 0 else name).rstrip(".")


def names_of(host: str, allowed: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """The names that a server goes by that listens on `host`: this machine's own, that one, and those that are allowed. None of
    them, which stands for any, where a key is needed and none is allowed by name: a page under a foreign name has no key."""
    if keys and not allowed:
        return ()
    return tuple(
        dict.fromkeys(host_name(name) for name in (*LOCAL_NAMES, _as_in_header(host), *map(_as_in_header, allowed)))
    )


def _as_in_header(host: str) -> str:
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


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
        digest = line.split("#")[0].strip().removesuffix("-").strip()  # sha256sum names its input at the end
        if digest and not _DIGEST.fullmatch(digest):
            raise UsageError(
                f"--api-keys {path}, line {number}: expected a SHA-256 digest (printf %s KEY | sha256sum), found something else"
            )
        if digest in EMPTY:
            raise UsageError(
                f"--api-keys {path}, line {number}: the digest of an empty key, as of a variable that was not set"
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


EMPTY = frozenset(map(hash_key, ("", "\n", "\r\n", " ")))
"""Digests of no key at all: of a variable that was not set, by `printf` and by `echo`."""


def settings_of(
    host: str,
    api_key: str | None,
    api_keys: Path | None,
    origins: Sequence[str],
    allowed_hosts: Sequence[str],
    framed_by: Sequence[str] = (),
) -> Settings:
    """Who may use a server that listens on `host`, as the command line says it. Raises `UsageError` for a key that is empty, as
    from a variable that was not set, where anybody on the network could use the server, and for a `framed_by` that is no
    origin."""
    for name, key in (("--api-key", api_key), ("PERSONASPACE_API_KEY", os.environ.get("PERSONASPACE_API_KEY"))):
        if key is not None and not key.strip():
            raise UsageError(f"{name} is empty: expected a key; leave it out to serve this machine without one")
    keys = (*((hash_key(api_key),) if api_key else ()), *(read_keys(api_keys) if api_keys else ()))
    check_exposure(host, keys)
    for origin in framed_by:
        if not _ORIGIN.fullmatch(origin):  # it stands in a header, where anything else could mean more
            raise UsageError(f"--framed-by {origin}: expected an origin, as https://huggingface.co")
    hosts = names_of(host, allowed_hosts, keys)
    return Settings(keys=keys, origins=tuple(origins), framed_by=tuple(framed_by), hosts=hosts)
