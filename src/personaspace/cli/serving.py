"""The command that serves a model with its space: serve."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from personaspace.cli.common import AdapterArg, Device, Dtype, ModelArg, SpaceArg, app, err, space_and_engine
from personaspace.errors import UsageError
from personaspace.model.dtypes import torch_name


@app.command(epilog="Example: personaspace serve smollm2")
def serve(
    space: SpaceArg,
    host: Annotated[str, typer.Option(help="Where to listen; another than this machine needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="PERSONASPACE_API_KEY", help="The key that clients must send.")
    ] = None,
    api_keys: Annotated[Path | None, typer.Option(help="A file of keys' SHA-256 digests, one a line.")] = None,
    cors: Annotated[
        list[str] | None, typer.Option(help="An origin that may call from its pages; several times.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Replies decoded together.")] = 16,
    queue: Annotated[int | None, typer.Option(help="Replies that may wait; more are answered 429; 64.")] = None,
    max_tokens: Annotated[int, typer.Option(help="At most that many tokens a reply.")] = 1024,
    record: Annotated[
        Path | None, typer.Option(help="Write conversations to this JSONL file; never otherwise.")
    ] = None,
    grace: Annotated[
        int | None, typer.Option(help="Seconds that what runs may take after Ctrl-C or SIGTERM; 20.")
    ] = None,
    model: ModelArg = None,
    adapter: AdapterArg = None,
    device: Device = None,
    dtype: Dtype = None,
    engine: Annotated[str, typer.Option(help="transformers; vllm serves by vLLM's own server.")] = "transformers",
    vllm: Annotated[list[str] | None, typer.Option(help="An option of vLLM's server, as --x=y; several times.")] = None,
) -> None:
    """Serve an OpenAI-compatible API that shows and holds the persona, and the page to try it on."""
    if engine == "vllm":
        unsupported = {"api-keys": api_keys, "record": record, "queue": queue, "grace": grace, "device": device}
        for option, value in unsupported.items():
            if value is not None:
                raise UsageError(f"--{option} is not there with --engine vllm: its server is vLLM's own")
        options = [f"--host={host}", f"--port={port}", f"--max-num-seqs={rows}"]
        options += [f"--allowed-origins={json.dumps(cors)}"] if cors else []
        options += [f"--override-generation-config={json.dumps({'max_new_tokens': max_tokens})}"]
        options += [f"--dtype={torch_name(dtype)}"] if dtype is not None else []
        _become_vllm(space, model, adapter, host, api_key, [*options, *(vllm or ())])
    if engine != "transformers":
        raise UsageError(f"--engine {engine}: expected transformers or vllm")
    queue, grace = 64 if queue is None else queue, 20 if grace is None else grace
    try:
        from personaspace.serve import Settings, create_app, hash_key, read_keys, run
        from personaspace.serve.settings import check_exposure
    except ModuleNotFoundError as e:
        raise UsageError(f"serve needs {e.name}: pip install 'personaspace[serve]'") from None
    for name, value in (("rows", rows), ("queue", queue), ("max-tokens", max_tokens)):
        if value < 1:
            raise UsageError(f"--{name} {value}: expected 1 or more")
    keys = (*((hash_key(api_key),) if api_key else ()), *(read_keys(api_keys) if api_keys else ()))
    check_exposure(host, keys)
    if record:
        _check_record(record)
    listening = _bind(host, port)
    settings = Settings(
        rows=rows, queue=queue, max_tokens=max_tokens, keys=keys, origins=tuple(cors or ()), record=record
    )
    loaded_space, loaded_engine = space_and_engine(space, model, device, dtype, adapter)
    application = create_app(loaded_space, loaded_engine, settings)  # type: ignore[arg-type]
    shown = f"[{host}]" if ":" in host else host
    err.print(f"{loaded_engine.info.id} at http://{shown}:{listening.getsockname()[1]}/ (API under /v1)")
    try:
        run(application, listening, grace)
    finally:
        listening.close()


def _become_vllm(
    space: str, model: str | None, adapters: list[str] | None, host: str, api_key: str | None, options: list[str]
) -> NoReturn:
    """vLLM's server takes this process' place."""
    try:
        from personaspace.serve.settings import check_exposure, hash_key
        from personaspace.serve.vllm import command
    except ModuleNotFoundError as e:
        raise UsageError(f"serve --engine vllm needs {e.name}: pip install 'personaspace[serve,vllm]'") from None
    if importlib.util.find_spec("vllm") is None:
        raise UsageError("serve --engine vllm needs vLLM: pip install 'personaspace[serve,vllm]'")
    from personaspace.mapping.plan import model_of
    from personaspace.model.loading import whole_folder, with_adapters
    from personaspace.space import PersonaSpace

    check_exposure(host, (hash_key(api_key),) if api_key else ())
    loaded_space = PersonaSpace.load(space)
    name = with_adapters(model or str(loaded_space.meta["model"]["id"]), adapters)
    folder = whole_folder(name)
    if Path(folder).is_dir():
        shape, _ = model_of(folder)
        model_size, space_size = (shape.num_hidden_layers, shape.hidden_size), tuple(loaded_space.tensors["axis"].shape)
        if model_size != space_size:
            raise UsageError(
                f"the space is for {space_size[0]} layers of {space_size[1]}; {name} has {model_size[0]} of {model_size[1]}"
            )
    program, environment = command(space, loaded_space.layer, folder, name, options)
    if api_key:
        environment["VLLM_API_KEY"] = api_key
    os.execve(program[0], program, environment)


def _check_record(path: Path) -> None:
    """That conversations can be written there, before the model is loaded."""
    try:
        path.open("a").close()
    except OSError as e:
        raise UsageError(f"--record {path}: cannot be written: {e.strerror}") from None


def _bind(host: str, port: int) -> socket.socket:
    """The socket, before the model is loaded: a port in use is said at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as e:
        raise UsageError(f"--host {host} --port {port}: cannot listen there: {e}") from None
    return listening
