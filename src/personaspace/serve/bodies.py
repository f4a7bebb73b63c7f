"""A JSON body is counted before anything is built of it: what is far too much is refused by looking at the lengths of lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from personaspace.json_text import parse
from personaspace.serve.refusals import BadRequest
from personaspace.serve.settings import Settings

_STRING = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"?')
"""A text in JSON, also one that does not end; possessive, so that no text takes longer than its length."""


class CountedRoute(APIRoute):
    """A route that takes a JSON body; the application's state has `settings` and `context`, the tokens of the longest row."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's way to handle a request, of a body that was counted."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_counted(request: Request) -> Response:
            body = await request.body()
            if body:
                state = request.app.state
                parsed = CountedRequest(request.scope, request.receive)
                parsed.value = read_body(body, state.settings, state.context)
                parsed.content = body
                request = parsed
            return await handle(request)

        return handle_counted


class CountedRequest(Request):
    """A request whose body was read and counted."""

    value: Any
    content: bytes

    async def body(self) -> bytes:
        """Its bytes."""
        return self.content

    async def json(self) -> Any:
        """What they say."""
        return self.value


def read_body(body: bytes, settings: Settings, context: int) -> Any:
    """The value of a request's body. Raises `BadRequest` where it is no JSON or more than any request may hold.

    Brackets and commas are counted first, outside of texts: they say how much would be built.
    """
    tokens = settings.max_n * context
    if _is_over(body, settings.max_values, tokens) and _is_over(_STRING.sub(b"", body), settings.max_values, tokens):
        raise _too_many(settings)
    try:
        value = parse(body.decode("utf-8-sig"), finite=True)
    except UnicodeDecodeError:
        raise BadRequest("The body is not JSON: it is not UTF-8", None, "invalid_json") from None
    except ValueError as e:
        raise BadRequest(f"The body is {e}", None, "invalid_json") from None
    if not isinstance(value, dict):
        return value
    counted = value
    if isinstance(prompt := value.get("prompt"), list):
        _check_prompt(prompt, settings, context)
        counted = {name: member for name, member in value.items() if name != "prompt"}
    if isinstance(messages := value.get("messages"), list) and len(messages) > settings.max_messages:
        raise BadRequest(f"{len(messages)} messages; at most {settings.max_messages} are taken", "messages")
    if holds_more(counted, settings.max_values):
        raise _too_many(settings)
    return value


def _is_over(body: bytes, values: int, tokens: int) -> bool:
    """Whether JSON has more brackets than values are taken, or more commas than those and the prompts' tokens need."""
    return body.count(b"[") + body.count(b"{") > values or body.count(b",") > values + tokens


def _too_many(settings: Settings) -> BadRequest:
    return BadRequest(f"The body holds more than {settings.max_values} values", None, "too_many_values")


def _check_prompt(prompt: list[Any], settings: Settings, context: int) -> None:
    """Text completions' prompts: token ids, texts, or lists of token ids."""
    if prompt and _are_numbers(prompt):
        _check_tokens(prompt, context)
        return
    if len(prompt) > settings.max_n:
        raise BadRequest(
            f"{len(prompt)} replies in one request, one a prompt; at most {settings.max_n} are made", "prompt"
        )
    for entry in prompt:
        if isinstance(entry, list):
            if not _are_numbers(entry):
                raise BadRequest("prompt: expected a text, token ids, or a list of either", "prompt")
            _check_tokens(entry, context)
        elif not isinstance(entry, str):
            raise BadRequest("prompt: expected a text, token ids, or a list of either", "prompt")


def _are_numbers(entries: list[Any]) -> bool:
    return set(map(type, entries)) <= {int, float}


def _check_tokens(tokens: list[Any], context: int) -> None:
    if len(tokens) >= context:
        message = f"This model's context is {context} tokens; the prompt has {len(tokens)}"
        raise BadRequest(message, "messages", "context_length_exceeded")


def holds_more(value: Any, most: int) -> bool:
    """Whether all lists and objects in a value have more than so many members together; looks at no more than that.

    >>> holds_more({"a": [1, 2]}, 3), holds_more({"a": [1, 2]}, 2)
    (False, True)
    """
    unseen, members = [value], 0
    while unseen:
        outer = unseen.pop()
        members += len(outer)
        if members > most:
            return True
        inside = outer.values() if isinstance(outer, dict) else outer
        unseen.extend(member for member in inside if isinstance(member, dict | list))
    return False
