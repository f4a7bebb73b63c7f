"""What stands beside vLLM's model runner in each worker: it listens to the scheduler, fills the tables before a pass, and
hands out what was read. The runner is vLLM's own, of either version."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from personaspace.engines.vllm.clamps import Rows
from personaspace.engines.vllm.layers import Sums, find_decoder_layers, put_inside, running, settle
from personaspace.engines.vllm.readout import How, Result, Tally
from personaspace.engines.vllm.request import FIELD, understand
from personaspace.engines.vllm.wire import pack
from personaspace.errors import ModelError, UsageError
from personaspace.model.interventions import Intervention, from_dict


@dataclass(frozen=True)
class Limits:
    """How much can be in flight at once: moves a layer, and directions a layer; they are sizes in the compiled pass.
    project: the layer at which tokens can be projected, where there is one."""

    moves: int = 1
    directions: int = 16
    project: int | None = None

    @classmethod
    def from_environment(cls) -> Limits:
        """PERSONASPACE_VLLM_MOVES, _DIRECTIONS and _PROJECT. Raises `UsageError`."""
        moves, directions = _setting("MOVES", 1), _setting("DIRECTIONS", 1)
        return cls(moves or cls.moves, directions or cls.directions, _setting("PROJECT", 0))


def _setting(name: str, least: int) -> int | None:
    given = os.environ.get(f"PERSONASPACE_VLLM_{name}")
    if given is not None and (not given.isdigit() or int(given) < least):
        raise UsageError(f"PERSONASPACE_VLLM_{name}={given}: expected a number from {least} on")
    return None if given is None else int(given)


@dataclass(frozen=True)
class Shape:
    """Of a model, as the configuration says it."""

    layers: int
    hidden: int

    @classmethod
    def of(cls, vllm_config: Any) -> Shape:
        config = vllm_config.model_config.hf_text_config
        return cls(int(config.num_hidden_layers), int(vllm_config.model_config.get_hidden_size()))


class Beside:
    """The companion of one model runner. named: interventions that requests may name."""

    def __init__(self, runner: Any, model: nn.Module, named: dict[str, tuple[Intervention, ...]]) -> None:
        config, limits = runner.vllm_config, Limits.from_environment()
        self.shape, self.named = Shape.of(config), named
        self.device: torch.device = runner.device
        slots = int(config.scheduler_config.max_num_seqs)
        tokens = int(runner.max_num_tokens)
        layers = find_decoder_layers(model, self.shape.layers)
        with torch.device("cpu"):  # vLLM may have set another default
            # A request has a row for its prompt's tokens and one for its reply's.
            rows = Rows(
                self.shape.layers, self.shape.hidden, 2 * slots + 2, limits.moves, limits.directions + 1, self.device
            )
            sums = Sums(self.shape.layers, self.shape.hidden, slots, tokens, self.device)
        if limits.project is not None and limits.project >= self.shape.layers:
            raise ModelError(f"PERSONASPACE_VLLM_PROJECT={limits.project}: the model has {self.shape.layers} layers")
        sums.project = limits.project
        put_inside(layers, rows, sums)
        running.sums = None  # of a model that was loaded before in this process
        settle(model, layers, lambda: _short_pass(model, config, self.device))
        self.tally = Tally(rows, sums)
        self._computed: dict[str, int] = {}

    def scheduled(self, output: Any) -> None:
        """Before a pass: who ended, who joined, and how far each is. output: vLLM's `SchedulerOutput`."""
        for id in output.finished_req_ids:
            self.tally.end(id)
        self._computed = {}
        for new in output.scheduled_new_reqs:
            self._computed[new.req_id] = new.num_computed_tokens
            self._begin(new)
        cached = output.scheduled_cached_reqs
        self._computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))

    def _begin(self, new: Any) -> None:
        params = new.sampling_params
        given = (params.extra_args or {}).get(FIELD) if params is not None else None
        if given is not None:
            ask = understand(given, self.named, self.shape.layers, self.shape.hidden)
            ends = params.stop_token_ids if params.ignore_eos else params.all_stop_token_ids
            self.tally.begin(new.req_id, ask, len(new.prompt_token_ids), ends or ())

    def prepared(self, order: Sequence[str], counts: Sequence[int], ids: Tensor) -> None:
        """The batch is laid out: request ids in its order, with how many tokens each has; ids: the tokens."""
        running.sums = self.tally.sums
        self.tally.step(order, counts, self._computed, ids)

    def nobodys(self) -> None:
        """A pass follows that is no request's."""
        running.sums = self.tally.sums
        self.tally.rest()

    def define(self, text: str) -> None:
        """Takes interventions in, as JSON: name → a list of what `Intervention.to_dict` writes, or null to forget it."""
        for name, listed in json.loads(text).items():
            if listed is None:
                self.named.pop(name, None)
            else:
                self.named[name] = tuple(from_dict(one) for one in listed)

    def aim(self, text: str) -> None:
        """Takes in what tokens are projected on: a vector `[hidden]`, as JSON. Raises `ModelError`."""
        vector = torch.tensor(json.loads(text), dtype=torch.float32)
        if vector.shape != (self.shape.hidden,):
            raise ModelError(f"a vector of {len(vector)} to project on; the model's have {self.shape.hidden}")
        self.tally.sums.aim.copy_(vector / vector.norm())

    def take(self, keys: Sequence[str], how: How = "end") -> bytes:
        """What was read under the keys, as a safetensors blob; see `wire` and `Tally.take`."""
        found: dict[str, Result | None] = {key: self.tally.take(key, how) for key in keys}
        return pack(found)


def _short_pass(model: nn.Module, vllm_config: Any, device: torch.device) -> None:
    """A few tokens through the model, uncompiled. There are no keys and values yet, with which attention gives what memory
    holds: it is made zeros. Raises `ModelError`."""
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    compiled = [m for m in model.modules() if getattr(m, "do_not_compile", None) is False]
    attentions = [m for m in model.modules() if isinstance(m, AttentionLayerBase)]
    handles = [m.register_forward_hook(lambda _, __, output: torch.zeros_like(output)) for m in attentions]
    ids, positions = torch.arange(4, 12, device=device), torch.arange(8, device=device)
    for m in compiled:
        vars(m)["do_not_compile"] = True
    try:
        # Parts of a layer may be compiled apart from it; that would take longer than the pass is worth.
        with torch.compiler.set_stance("force_eager"), set_forward_context(None, vllm_config, num_tokens=len(ids)):
            model(input_ids=ids, positions=positions)
    except (RuntimeError, ValueError, TypeError, AssertionError) as e:
        raise ModelError(
            f"cannot run a few tokens through {type(model).__name__} to find its residual stream: {e}"
        ) from e
    finally:
        for handle in handles:
            handle.remove()
        for m in compiled:
            vars(m)["do_not_compile"] = False
