"""How a request is refused: OpenAI's shape of an error, and an answer for what stands before the routes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Receive, Send

from personaspace.errors import invalid_reason

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's types of errors, by status; every other refusal of a request is an `invalid_request_error`."""

DRAINED = 64 << 20
"""Bytes of a refused body that are read and thrown away: a client that is still sending would not see the answer."""


class BadRequest(Exception):
    """A request that cannot be met: the message, the field, OpenAI's code and the status."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def refusal_of(error: Mapping[str, Any]) -> BadRequest:
    """What a body is refused for that is not as its type says, of the first of a `pydantic.ValidationError`'s errors."""
    field = ".".join(str(part) for part in error["loc"] if part != "body")
    if error["type"] == "extra_forbidden":
        return BadRequest(f"Unsupported parameter: '{field}'", field, "unsupported_parameter")
    return BadRequest(": ".join(filter(None, [field, invalid_reason(error)])), field or None)


def error_kind(status: int) -> str:
    """OpenAI's type of an error that is answered with a status."""
    return "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape; what it repeats of a request may be no text."""
    return {"error": {"message": _text(message), "type": kind, "param": param and _text(param), "code": code}}


def _text(value: str) -> str:
    return value.encode(errors="replace").decode()


async def drain(receive: Receive) -> None:
    """Reads the rest of a body and throws it away, up to `DRAINED` bytes."""
    seen = 0
    while seen < DRAINED:
        message = await receive()
        seen += len(message.get("body", b""))
        if not message.get("more_body"):
            return


async def refuse(send: Send, status: int, message: str, code: str) -> None:
    """Answers with an error; the connection ends with it, since whatever else comes on it was not read."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    content = json.dumps(error_body(message, error_kind(status), None, code))
    await send({"type": "http.response.body", "body": content.encode()})
