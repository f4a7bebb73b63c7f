"""The command that serves a model with its space: serve."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from personaspace.cli.common import (
    AdapterArg,
    Device,
    Dtype,
    ModelArg,
    SpaceArg,
    app,
    check_unused,
    err,
    space_and_engine,
)
from personaspace.errors import UsageError
from personaspace.model.dtypes import torch_name

if TYPE_CHECKING:
    from personaspace.serve.settings import WatchSettings


@app.command(epilog="Example: personaspace serve smollm2")
def serve(
    space: SpaceArg,
    host: Annotated[str, typer.Option(help="Where to listen; another than this machine needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="PERSONASPACE_API_KEY", help="The key that clients must send.")
    ] = None,
    api_keys: Annotated[Path | None, typer.Option(help="A file of keys' SHA-256 digests, one a line.")] = None,
    cors: Annotated[
        list[str] | None, typer.Option(help="An origin that may call from its pages; several times.")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None, typer.Option(help="Another name that the server goes by; several times.")
    ] = None,
    framed_by: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may show the page in a frame; several times.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Replies decoded together.")] = 16,
    queue: Annotated[int | None, typer.Option(help="Replies that may wait; more are answered 429; 64.")] = None,
    max_tokens: Annotated[int, typer.Option(help="At most that many tokens a reply.")] = 1024,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a prompt and its reply; as many as model and memory have room for.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write conversations to this JSONL file; never otherwise.")
    ] = None,
    directions: Annotated[
        str | None, typer.Option(help="Files of vectors of your own, separated by commas: directions like the space's.")
    ] = None,
    read: Annotated[
        str | None, typer.Option(help="Read replies along these directions as well; names, separated by commas.")
    ] = None,
    alert: Annotated[
        str | None,
        typer.Option(
            help="Alerts, separated by commas: NAME (1% of default conversations raise it), NAME>2.5, NAME<-2.5."
        ),
    ] = None,
    on_alert: Annotated[
        str, typer.Option(help="What is done to a conversation after an alert: tell, cap or stop.")
    ] = "tell",
    webhook: Annotated[
        str | None, typer.Option(help="Where alerts are sent as they begin, signed by PERSONASPACE_WEBHOOK_SECRET.")
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
    watched = {"read": _listed(read), "alerts": _listed(alert), "on_alert": on_alert, "webhook": webhook}
    if engine == "vllm":
        unsupported = {"framed-by": framed_by, "record": record, "queue": queue, "grace": grace, "device": device}
        for option, value in unsupported.items():
            if value is not None:
                raise UsageError(f"--{option} is not there with --engine vllm: its server is vLLM's own")
        options = [f"--host={host}", f"--port={port}", f"--max-num-seqs={rows}"]
        options += [f"--allowed-origins={json.dumps(cors or [])}"]
        options += [f"--override-generation-config={json.dumps({'max_new_tokens': max_tokens})}"]
        options += [f"--max-model-len={context}"] if context is not None else []
        options += [f"--dtype={torch_name(dtype)}"] if dtype is not None else []
        outside = {"host": host, "api_key": api_key, "api_keys": api_keys, "origins": cors or ()}
        outside["allowed_hosts"] = allowed_hosts or ()
        _become_vllm(space, model, adapter, outside, [*options, *(vllm or ())], watched, _listed(directions))
    if engine != "transformers":
        raise UsageError(f"--engine {engine}: expected transformers or vllm")
    check_unused("--engine vllm", vllm=vllm)
    queue, grace = 64 if queue is None else queue, 20 if grace is None else grace
    from personaspace.formats.vectors import with_vectors

    try:
        from personaspace.serve import create_app, run
        from personaspace.serve.settings import settings_of
    except ModuleNotFoundError as e:
        raise UsageError(f"serve needs {e.name}: pip install 'personaspace[serve]'") from None
    limits = {"rows": rows, "queue": queue, "max-tokens": max_tokens, "context": context}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: expected 1 or more")
    settings = replace(
        settings_of(host, api_key, api_keys, cors or (), allowed_hosts or (), framed_by or ()),
        rows=rows,
        queue=queue,
        max_tokens=max_tokens,
        context=context,
        record=record,
        watch=_checked_watch(space, watched, _listed(directions)),
    )
    if record:
        _check_record(record)
    listening = _bind(host, port)
    loaded_space, loaded_engine = space_and_engine(space, model, device, dtype, adapter)
    loaded_space, _ = with_vectors(loaded_space, _listed(directions))
    application = create_app(loaded_space, loaded_engine, settings)  # type: ignore[arg-type]
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    err.print(
        f"{loaded_engine.info.id} at {address} (API under /v1), {application.state.context:,} tokens of context",
    )
    try:
        run(application, listening, grace)
    finally:
        listening.close()


def _become_vllm(
    space: str,
    model: str | None,
    adapters: list[str] | None,
    outside: dict[str, Any],
    options: list[str],
    watched: dict[str, Any],
    vectors: list[str],
) -> NoReturn:
    """vLLM's server takes this process' place. outside: what `settings_of` takes, of who may come in; watched: what
    `WatchSettings` has."""
    try:
        from personaspace.serve.settings import settings_of
        from personaspace.serve.vllm import command
    except ModuleNotFoundError as e:
        raise UsageError(f"serve --engine vllm needs {e.name}: pip install 'personaspace[serve,vllm]'") from None
    if importlib.util.find_spec("vllm") is None:
        raise UsageError("serve --engine vllm needs vLLM: pip install 'personaspace[serve,vllm]'")
    from personaspace.mapping.plan import model_of
    from personaspace.model.loading import whole_folder, with_adapters
    from personaspace.space import PersonaSpace

    settings = replace(settings_of(**outside), watch=_checked_watch(space, watched, vectors))
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
    program, environment = command(space, loaded_space.layer, folder, name, options, settings, vectors)
    os.execve(program[0], program, environment)


def _listed(names: str | None) -> list[str]:
    return [name for name in map(str.strip, (names or "").split(",")) if name]


def _checked_watch(space: str, watched: dict[str, Any], vectors: list[str]) -> WatchSettings:
    """What is watched, and that it can be, before the model is loaded; how alerts are meant is said."""
    from personaspace.formats.vectors import with_vectors
    from personaspace.serve.settings import ON_ALERT, WatchSettings
    from personaspace.serve.watch import Watch
    from personaspace.serve.webhook import Webhook
    from personaspace.space import PersonaSpace

    if watched["on_alert"] not in ON_ALERT:
        raise UsageError(f"--on-alert {watched['on_alert']}: expected {', '.join(ON_ALERT)}")
    watch = WatchSettings.of(watched)
    if watch.webhook is not None:
        Webhook(watch.webhook, watch.secret, lambda _: None)
    if vectors or watch != WatchSettings(secret=watch.secret):
        loaded_space, _ = with_vectors(PersonaSpace.load(space), vectors)
        for named in Watch.of(loaded_space, watch).alerts:
            err.print(f"alert of {named}")
    return watch


def _check_record(path: Path) -> None:
    """That conversations can be written there, before the model is loaded."""
    from personaspace.files import reason_of
    from personaspace.serve.record import append_private

    try:
        append_private(path, "")
    except OSError as e:
        raise UsageError(f"--record {path}: cannot be written: {reason_of(e)}") from None


def _bind(host: str, port: int) -> socket.socket:
    """The socket, before the model is loaded: a port in use is said at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as e:
        reason = e.strerror or e
        raise UsageError(
            f"--host {host} --port {port}: cannot listen there: {reason}; --port 0 takes a free one"
        ) from None
    return listening
