"""The engine's part in each worker of vLLM: it listens to the scheduler, fills the tables before a pass of the model runner,
and hands out what was read. The runner is vLLM's own, of either version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from personaspace.engines.vllm.clamps import Rows
from personaspace.engines.vllm.layers import DeviceSums, detect_residual_form, install, running
from personaspace.engines.vllm.limits import Limits, VllmModelShape
from personaspace.engines.vllm.readout import Readout, TakeMode
from personaspace.engines.vllm.request import FIELD, parse_request
from personaspace.engines.vllm.wire import pack
from personaspace.errors import ModelError
from personaspace.model.interventions import Intervention, from_dict
from personaspace.model.residual import outermost_list


class RunnerState:
    """What one model runner's passes need: tables, sums, requests. named: interventions that requests may name."""

    def __init__(self, runner: Any, model: nn.Module, named: dict[str, tuple[Intervention, ...]]) -> None:
        config, limits = runner.vllm_config, Limits.from_environment()
        self.shape, self.named = VllmModelShape.of(config), named
        self.device: torch.device = runner.device
        slots = int(config.scheduler_config.max_num_seqs)
        tokens = int(runner.max_num_tokens)
        layers = outermost_list(model, self.shape.layers)
        with torch.device("cpu"):  # vLLM may have set another default
            # A request has a row for its prompt's tokens and one for its reply's.
            rows = Rows(
                self.shape.layers, self.shape.hidden, 2 * slots + 2, limits.clamps, limits.directions + 1, self.device
            )
            sums = DeviceSums(self.shape.layers, self.shape.hidden, slots, tokens, self.device)
        if limits.project is not None and limits.project >= self.shape.layers:
            raise ModelError(f"PERSONASPACE_VLLM_PROJECT={limits.project}: the model has {self.shape.layers} layers")
        sums.project = limits.project
        install(layers, rows, sums)
        running.sums = None  # of a model that was loaded before in this process
        detect_residual_form(model, layers, lambda: _short_pass(model, config, self.device))
        self.readout = Readout(rows, sums)
        self._computed: dict[str, int] = {}

    def before_pass(self, schedule: Any) -> None:
        """Who ended, who joined, and how far each is. schedule: vLLM's `SchedulerOutput`."""
        for id in schedule.finished_req_ids:
            self.readout.end(id)
        self._computed = {}
        for new in schedule.scheduled_new_reqs:
            self._computed[new.req_id] = new.num_computed_tokens
            params = new.sampling_params
            fields = (params.extra_args or {}).get(FIELD) if params is not None else None
            if fields is not None:
                parsed = parse_request(fields, self.named, self.shape.layers, self.shape.hidden)
                stop_tokens = params.stop_token_ids if params.ignore_eos else params.all_stop_token_ids
                self.readout.begin(new.req_id, parsed, len(new.prompt_token_ids), stop_tokens or ())
        cached = schedule.scheduled_cached_reqs
        self._computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))

    def after_batch_prepared(self, order: Sequence[str], counts: Sequence[int], ids: Tensor) -> None:
        """The batch is laid out: request ids in its order, with how many tokens each has; ids: the tokens."""
        running.sums = self.readout.sums
        self.readout.step(order, counts, self._computed, ids)

    def before_dummy_pass(self) -> None:
        """A pass follows that is no request's."""
        running.sums = self.readout.sums
        self.readout.clear_tables()

    def define(self, text: str) -> None:
        """Takes interventions in, as JSON: name → a list of what `Intervention.to_dict` writes, or null to forget it."""
        for name, entries in json.loads(text).items():
            if entries is None:
                self.named.pop(name, None)
            else:
                self.named[name] = tuple(from_dict(entry) for entry in entries)

    def aim(self, text: str) -> None:
        """Takes in what tokens are projected on: a vector `[hidden]`, as JSON. Raises `ModelError`."""
        vector = torch.tensor(json.loads(text), dtype=torch.float32)
        if vector.shape != (self.shape.hidden,):
            raise ModelError(f"a vector of {len(vector)} to project on; the model's have {self.shape.hidden}")
        self.readout.sums.direction.copy_(vector / vector.norm())

    def take(self, keys: Sequence[str], mode: TakeMode = "final") -> bytes:
        """What was read under the keys, as a safetensors blob; see `wire` and `Readout.take`."""
        return pack({key: self.readout.take(key, mode) for key in keys})


def _short_pass(model: nn.Module, vllm_config: Any, device: torch.device) -> None:
    """A few tokens through the model, uncompiled. There is no KV cache yet, with which attention gives what memory
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
