"""Processes that are forked from a server which has imported everything, so that none of them waits for its imports: calls, and
the program as its entry point starts it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any


def forked(call: Callable[..., None], *arguments: Any) -> Any:
    """A process that makes the call, begun. Its server has no threads, so that those it forks are real ones."""
    tests = str(Path(__file__).parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([tests, *(path for path in paths if path not in ("", tests))])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills", "personaspace.cli.serving", "personaspace.serve.app"])
    process = context.Process(target=call, args=arguments)
    process.start()
    return process


def finish(process: Any) -> None:
    """Waits for its end, which must be a good one."""
    process.join()
    assert process.exitcode == 0, f"the same command ended with exit code {process.exitcode}"


def begin_program(log: Path, *arguments: object, before: Callable[[], None] | None = None) -> Any:
    """A process that is `personaspace` with these arguments: what it says on stderr goes into the log, what it prints nowhere.
    before: what is changed in it first."""
    return forked(_program, str(log), [str(argument) for argument in arguments], before)


def _program(log: str, arguments: list[str], before: Callable[[], None] | None) -> None:
    from personaspace.cli import main

    for file, descriptor in ((os.devnull, 1), (log, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    # As where a terminal starts it, though a shell that runs tests in the background had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if before is not None:
        before()
    sys.argv = ["personaspace", *arguments]
    main()


def small_shards() -> None:
    """Eight replies a shard."""
    import personaspace.mapping.stages

    personaspace.mapping.stages.SHARD = 8


def small_server(settings_of_test: dict[str, Any], files: int | None = None, breaking: bool = False) -> None:
    """`personaspace serve` has a small random model in place of the space's own, other settings, and so many files to open;
    breaking: it cannot decode."""
    from conftest import make_model, make_tokenizer
    from personaspace.cli import serving
    from personaspace.engines.transformers.decode_loop import DecodeLoop
    from personaspace.engines.transformers.engine import TransformersEngine
    from personaspace.serve import settings
    from personaspace.space import PersonaSpace

    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    engine = TransformersEngine(make_model("llama"), make_tokenizer(), id="me/tiny", rows=4)
    serving.space_and_engine = lambda source, *_: (PersonaSpace.load(source), engine)
    settings.settings_of = partial(_overridden, settings.settings_of, settings_of_test)
    if breaking:
        loops = [_fail, engine.open_loop]
        engine.open_loop = lambda *a, **k: loops.pop()(*a, **k)
        DecodeLoop.step = _fail


def _overridden(original: Callable[..., Any], fields: dict[str, Any], *options: Any) -> Any:
    return replace(original(*options), **fields)


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("the device is gone")
