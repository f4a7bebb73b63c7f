"""What an endpoint may send: so many bytes and no more, packed or not; it knows nothing of what they say."""

from __future__ import annotations

import sys
import zlib
from typing import Any

LARGEST = 4 * 2**20
"""Bytes of an answer, unpacked: one of 4,096 tokens has some 20,000."""
PACKED = {"gzip": 31, "x-gzip": 31, "deflate": 47}
"""zlib's window for each packing that is read. None is asked for, but servers pack all the same."""


class TooLarge(Exception):
    """More than `LARGEST`, or packed in a way that was not asked for; one line."""


async def read_within(response: Any) -> None:
    """Reads a response of httpx's, whole and within `LARGEST`, and puts what was read in its place: a hook of the client's,
    since the client itself would unpack whatever comes, that of errors too. Raises `TooLarge`."""
    packed = bytearray()
    async for chunk in response.stream:
        packed += chunk
        if len(packed) > LARGEST:
            raise TooLarge(f"an answer of more than {LARGEST // 2**20} MB")
    await response.stream.aclose()
    body = unpacked(bytes(packed), response.headers.get("content-encoding", "identity"))
    for name in ("content-encoding", "content-length", "transfer-encoding"):
        response.headers.pop(name, None)
    # The package's client is built on httpx, or on its successor: the response knows which.
    response.stream = sys.modules[type(response).__module__.partition(".")[0]].ByteStream(body)


def unpacked(packed: bytes, encoding: str) -> bytes:
    """The bytes, unpacked no further than to `LARGEST`. Raises `TooLarge`."""
    names = [name for part in encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if not names:
        return packed
    if len(names) > 1 or names[0] not in PACKED:
        raise TooLarge(f"an answer packed as {','.join(names)[:40]!r}, which was not asked for")
    try:
        body = zlib.decompressobj(PACKED[names[0]]).decompress(packed, LARGEST + 1)
    except zlib.error:
        return packed  # not packed after all, or broken: whoever parses it says so
    if len(body) > LARGEST:
        raise TooLarge(f"an answer of more than {LARGEST // 2**20} MB once unpacked")
    return body
