"""Interventions on a `transformers` model of one's own, in whatever calls it: its own `generate`, or a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from personaspace.errors import UsageError
from personaspace.model.interventions import Intervention
from personaspace.model.residual import Intervening, check_interventions, find_layers, text_config, text_layers


@contextmanager
def attach(model: nn.Module, *interventions: Intervention) -> Iterator[None]:
    """While it lasts, any forward pass or `generate` of a `transformers` model of yours has the interventions on.

    Those for generated tokens alone act on what stands behind the prompt that `generate` was given, also where several tokens
    go through the model at once (prompt lookup, an assistant model). Of passes of your own they act on those of a single token.
    What decays does so from the prompt's end on, in `generate` alone. Afterwards the model is as it was. Raises `UsageError`,
    also for an intervention on answers alone, since nothing here tells thoughts from them; `ModelError`.

    >>> with attach(model, space.cap()):
    ...     reply = model.generate(**tokenizer("Who are you?", return_tensors="pt"), max_new_tokens=20)
    """
    layers = text_layers(model)
    check_interventions(interventions, len(layers), text_config(model).hidden_size)
    if any(i.where == "answer" for i in interventions):
        raise UsageError(
            "where=answer: attach cannot tell thoughts from an answer, as an engine does; where=generated takes both"
        )
    applied = Intervening()
    everywhere = tuple(i for i in interventions if i.where == "all")
    prompt: list[int] = []  # how many tokens it has, while `generate` runs

    caches: list[Any] = []  # the pass's own, where the model takes one by that name; layers have several names for it

    def note_cache(place: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caches[:] = [args[place] if place < len(args) else kwargs.get("past_key_values")]

    def choose(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        start = _tokens_before(caches, hidden.shape[1], prompt[-1]) if prompt else None
        applied.places = {}
        if start is not None:
            behind = torch.arange(start, start + hidden.shape[1], device=hidden.device) - prompt[-1]
            applied.places = {"generated": behind.clamp(min=-1).expand(hidden.shape[:2])}
            applied.groups = [(None, tuple(interventions))]
        else:
            applied.groups = [(None, tuple(interventions) if hidden.shape[1] == 1 else everywhere)]

    def generate(inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        tokens = kwargs.get("input_ids") if inputs is None else inputs
        known = [tokens.shape[1]] if tokens is not None else []
        prompt.extend(known)
        try:
            return own_generate(inputs, *args, **kwargs)
        finally:
            del prompt[len(prompt) - len(known) :]

    own_generate: Any = getattr(model, "generate", None)
    instance_generate = vars(model).get("generate")
    inner = find_layers(model)
    around = (m for m in model.modules() if m is not inner and any(part is inner for part in m.modules()))
    handles = [
        m.register_forward_pre_hook(partial(note_cache, names.index("past_key_values")), with_kwargs=True)
        for m in around
        if "past_key_values" in (names := list(inspect.signature(m.forward).parameters))
    ]
    handles.append(layers[0].register_forward_pre_hook(choose, with_kwargs=True))
    try:
        if own_generate is not None:
            vars(model)["generate"] = generate
        with applied.on(layers):
            yield
    finally:
        vars(model).pop("generate", None)
        if instance_generate is not None:  # as inside another `attach`
            vars(model)["generate"] = instance_generate
        for handle in handles:
            handle.remove()


def _tokens_before(caches: Sequence[Any], length: int, prompt: int) -> int | None:
    """How many tokens stand before a pass of `generate`; None where what it goes on from does not count them."""
    if caches and caches[0] is not None:
        try:
            return int(caches[0].get_seq_length())
        except ValueError:  # of states alone
            return None
    # Without a cache all tokens go through again; a family of states may take one that follows on them.
    return 0 if length >= prompt and (caches or length > 1) else None
