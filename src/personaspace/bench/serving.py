"""How fast servers answer many clients, in long conversations and beside long prompts, by their OpenAI-compatible addresses:
`personaspace serve`, `transformers serve` where it can run, and whatever else is there already."""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from personaspace.bench.measure import summary
from personaspace.errors import UsageError

CLIENTS = (1, 4, 16, 64)
TURNS = (2, 20)
ASKED = (
    "What does the sea look like at night?",
    "Who taught you that?",
    "Tell me how bread is made.",
    "Why is that so?",
)
LONG = "The wind turned, and the boats came home one after the other. "
STARTED = 12
"""Tokens of a stream after which its usual gap is taken, as many again behind the long prompt's first token."""
STARTING_SECONDS = 300.0
PEER = "transformers serve"


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server. address: without `/v1`; model: as it calls it."""

    address: str
    model: str

    def ask(self, messages: Sequence[Mapping[str, str]], tokens: int) -> Iterator[tuple[float, str]]:
        """When each piece of a reply's text came, and the piece. Raises `UsageError` where it is refused."""
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
        answer = self._request("POST", "/v1/chat/completions", json.dumps(body))
        while line := answer.readline():
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices") or [{}]
                if text := choices[0].get("delta", {}).get("content"):
                    yield time.monotonic(), text

    def _request(self, method: str, path: str, body: str | None = None) -> http.client.HTTPResponse:
        parts = urlsplit(self.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=1800)
        connection.request(method, parts.path.rstrip("/") + path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise UsageError(f"{self.address}{path}: expected 200, got {answer.status}: {answer.read(300).decode()}")
        return answer

    @classmethod
    def at(cls, address: str) -> Server:
        """A server that runs already, with the first model that it names. Raises `UsageError`."""
        server = cls(address.rstrip("/").removesuffix("/v1"), "")
        try:
            models = json.loads(server._request("GET", "/v1/models").read())["data"]
            return cls(server.address, models[0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as e:
            raise UsageError(f"{address}: expected the address of an OpenAI-compatible server: {e}") from None


def throughput(server: Server, clients: int, tokens: int) -> float:
    """Pieces of text a second, a token each, that so many clients get together, one reply each."""

    def count(client: int) -> int:
        question = {"role": "user", "content": f"{ASKED[client % len(ASKED)]} ({client})"}
        return sum(1 for _ in server.ask([question], tokens))

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        pieces = sum(pool.map(count, range(clients)))
    return pieces / (time.monotonic() - began)


def first_tokens(server: Server, tokens: int, salt: int) -> dict[int, float]:
    """Seconds to the first piece of a reply at each of `TURNS` of one conversation. salt: makes it unlike others."""
    conversation: list[dict[str, str]] = []
    waits: dict[int, float] = {}
    for turn in range(1, max(TURNS) + 1):
        conversation.append({"role": "user", "content": f"{ASKED[turn % len(ASKED)]} ({salt}, {turn})"})
        began, reply = time.monotonic(), ""
        for at, text in server.ask(conversation, tokens):
            if not reply and turn in TURNS:
                waits[turn] = at - began
            reply += text
        conversation.append({"role": "assistant", "content": reply or "-"})
    return waits


def gaps_beside(server: Server, words: int, salt: int) -> tuple[float, float, float]:
    """Of a running stream: its usual gap between two pieces, the longest one from when a prompt of so many words comes until a
    dozen pieces behind its first; and how long that took, in seconds."""
    # The beginning is new each time, so that nothing of it is kept from an earlier one.
    prompt = f"{salt}. " + LONG * (words // len(LONG.split()))
    times: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        first_piece: Any = None
        began = ended = 0.0
        behind = STARTED
        for at, _ in server.ask([{"role": "user", "content": f"Write a long story about the sea ({salt})."}], 4096):
            times.append(at)
            if first_piece is None and len(times) > STARTED:
                began = at
                first_piece = pool.submit(
                    lambda: next(iter(server.ask([{"role": "user", "content": prompt}], 8)), None)
                )
            elif first_piece is not None and first_piece.done():
                ended, behind = ended or at, behind - 1
                if not behind:
                    break
        if first_piece is None or first_piece.result() is None or not ended:
            raise UsageError(f"{server.address}: a stream ended before a prompt of {words} words had its first token")
    gaps = [(b - a, b) for a, b in pairwise(times)]
    return statistics.median(g for g, at in gaps if at <= began), max(g for g, at in gaps if at > began), ended - began


def figures(server: Server, tokens: int, words: int, repeats: int) -> Iterator[tuple[str, list[float], str]]:
    """Each measurement: what, its values, and their unit."""
    throughput(server, 1, 4)  # memory is touched for the first time
    for clients in CLIENTS:
        yield f"{clients} clients" if clients > 1 else "1 client", [throughput(server, clients, tokens)], "tokens/s"
    waits = [first_tokens(server, tokens, salt) for salt in range(repeats)]
    first, last = TURNS
    for turn in TURNS:
        yield f"first token, turn {turn}", [w[turn] for w in waits], "s"
    yield f"first token, turn {last} / turn {first}", [w[last] / w[first] for w in waits], ""
    beside = [gaps_beside(server, words, salt) for salt in range(repeats)]
    yield "usual gap of a stream", [usual for usual, _, _ in beside], "s"
    yield "its longest beside a long prompt / usual", [longest / usual for usual, longest, _ in beside], ""
    yield "first token of the long prompt", [wait for _, _, wait in beside], "s"


def measure(space: str, tokens: int, words: int, repeats: int, against: Sequence[str]) -> dict[str, Any]:
    """`servers`: name → what was measured → its summary; `not run`: name → why. One server after the other has the machine."""
    measured: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}

    def take(name: str, server: Server) -> None:
        measured[name] = {}
        try:
            for what, values, unit in figures(server, tokens, words, repeats):
                measured[name][what] = summary(values, unit)
        except (OSError, http.client.HTTPException, UsageError) as e:
            left_out[name] = f"after {len(measured[name])} measurements: {e}"

    others = [(address, Server.at(address)) for address in against]
    with running("personaspace", "serve", space, "--max-tokens", "4096") as address:
        take("personaspace serve", Server.at(address))
    if missing := [m for m in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(m) is None]:
        left_out[PEER] = f"it needs {', '.join(missing)}: pip install 'transformers[serving]'"
    else:
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(_saved(space))
                take(
                    PEER, Server(stack.enter_context(running("transformers.cli.transformers", "serve", folder)), folder)
                )
            except UsageError as e:
                left_out[PEER] = str(e)
    for name, server in others:
        take(name, server)
    return {"servers": measured, "not run": left_out}


@contextmanager
def running(module: str, *arguments: str) -> Iterator[str]:
    """A server's process, and its address once it answers. Raises `UsageError` where it does not come up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    program = [sys.executable, "-m", module, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log, subprocess.Popen(program, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + STARTING_SECONDS
            while True:
                try:
                    Server(address, "")._request("GET", "/health")
                    break
                except (OSError, http.client.HTTPException, UsageError):
                    if process.poll() is None and time.monotonic() < until:
                        time.sleep(0.2)
                        continue
                log.seek(0)
                last = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["it says nothing"]
                raise UsageError(f"{' '.join(program[2:4])} does not start: {last[0]}")
            yield address
        finally:
            process.terminate()


@contextmanager
def _saved(space: str) -> Iterator[str]:
    """A folder with the space's model, as `transformers` writes it: any other name of it may be one that only we know."""
    from personaspace.engines.transformers.engine import TransformersEngine
    from personaspace.engines.transformers.memory import free_memory
    from personaspace.space import PersonaSpace

    loaded = TransformersEngine.load(str(PersonaSpace.load(space).meta["model"]["id"]))
    with tempfile.TemporaryDirectory() as folder:
        for part in (loaded.model, loaded.tokenizer):
            part.save_pretrained(folder)
        # One server after the other has the machine.
        del loaded, part
        free_memory()
        yield str(Path(folder))
