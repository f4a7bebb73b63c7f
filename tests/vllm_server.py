"""vLLM's server of a space as a process, started as a user starts it, by whichever environment has vLLM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

SMALL = ("--enforce-eager", "--max-model-len=512", "--kv-cache-memory-bytes=268435456")
"""Options of vLLM's with which it starts soon, and takes little memory."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def vllm_served(space: str, python: str = sys.executable, options: Sequence[str] = SMALL) -> Iterator[str]:
    """The address of a space's server, until it is ended. python: that of an environment with vLLM."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    program = [python, "-m", "personaspace", "serve", space, "--engine", "vllm", f"--port={port}", "--rows=8"]
    with tempfile.TemporaryFile() as log:  # a pipe that nobody reads would fill up
        process = subprocess.Popen(
            [*program, "--dtype=fp32", *(f"--vllm={option}" for option in options)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parent.parent,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(900):
                if process.poll() is not None:
                    log.seek(0)
                    raise AssertionError(log.read().decode(errors="replace")[-3000:])
                try:
                    if httpx.get(f"{address}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(1)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
