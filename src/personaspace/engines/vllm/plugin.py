"""vLLM's entry point (group `vllm.general_plugins`): puts the engine's parts where vLLM looks at requests, schedules them,
loads models and runs passes. It is called in every process of vLLM, and does nothing the second time.

Each place is wrapped, never replaced: what vLLM did there it still does. They are those of vLLM 0.32, of both its runners.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from logging import getLogger
from typing import Any

from personaspace.engines.vllm import layers as compiled
from personaspace.engines.vllm.admission import InFlight, admit, unsupported
from personaspace.engines.vllm.clamps import check_kinds
from personaspace.engines.vllm.limits import Limits
from personaspace.engines.vllm.readout import TakeMode
from personaspace.engines.vllm.request import FIELD
from personaspace.engines.vllm.worker import RunnerState
from personaspace.errors import ModelError, PersonaSpaceError
from personaspace.model.interventions import Intervention

log = getLogger("vllm.personaspace")
NAMED: dict[str, tuple[Intervention, ...]] = {}
"""Interventions that requests in this process may name."""


class InterventionRegistry:
    """Which interventions the workers have: the `capacity` that were asked for last, far more than are ever in flight."""

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self._sent: OrderedDict[str, None] = OrderedDict()

    def unsent(self, interventions: Sequence[Intervention]) -> str | None:
        """What to send them by `personaspace_define`, as JSON; None where they have all. Raises `UsageError`."""
        check_kinds(interventions)
        added = {i.key: [i.to_dict()] for i in interventions if i.key not in self._sent}
        for i in interventions:
            if i.key in self._sent:
                self._sent.move_to_end(i.key)
        dropped = itertools.islice(self._sent, max(0, len(self._sent) + len(added) - self.capacity))
        return json.dumps({**dict.fromkeys(dropped), **added}) if added else None

    def mark_sent(self, interventions: Sequence[Intervention]) -> None:
        """They were sent: requests may name these from now on."""
        for i in interventions:
            self._sent[i.key] = None
            NAMED[i.key] = (i,)
        while len(self._sent) > self.capacity:
            NAMED.pop(self._sent.popitem(last=False)[0], None)


def register() -> None:
    """Called by vLLM when it starts, in each of its processes."""
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_worker import Worker
    from vllm.v1.worker.worker_base import WorkerBase

    if getattr(WorkerBase, "personaspace_take", None):
        return
    setattr(WorkerBase, "personaspace_take", _take)  # noqa: B010
    setattr(WorkerBase, "personaspace_define", _define)  # noqa: B010
    setattr(WorkerBase, "personaspace_aim", _aim)  # noqa: B010
    setattr(WorkerBase, "personaspace_why_not", _why_not)  # noqa: B010
    _wrap(EngineCore, "__init__", _init_core)
    _wrap(VllmConfig, "compute_hash", _hash)
    _wrap(InputProcessor, "process_inputs", _process_inputs)
    _wrap(Worker, "load_model", _load_model)
    _wrap(EngineCore, "preprocess_add_request", _preprocess_add_request)
    _wrap(Scheduler, "_free_request", _free_request)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Puts `around(original, self, …)` in place of a method."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, method)


# -- where vLLM looks at requests ----------------------------------------------------------------------------------------


def _process_inputs(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    request = original(self, *args, **kwargs)
    try:
        admit(request, self.vllm_config, NAMED)
    except PersonaSpaceError as e:
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError(str(e), parameter=FIELD) from None  # answered with status 400
    return request


# -- where it schedules them ---------------------------------------------------------------------------------------------


def _init_core(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    reasons = self.model_executor.collective_rpc("personaspace_why_not")
    _in_flight(self.scheduler).why_not = next((reason for reason in reasons if reason), "")


def _preprocess_add_request(original: Callable[..., Any], self: Any, request: Any) -> Any:
    in_flight = _in_flight(self.scheduler)
    in_flight.add(request.request_id, request.sampling_params)
    try:
        return original(self, request)
    except Exception:
        in_flight.remove(request.request_id)
        raise


def _free_request(original: Callable[..., Any], self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    _in_flight(self).remove(request.request_id)
    return original(self, request, *args, **kwargs)


def _in_flight(scheduler: Any) -> InFlight:
    if not hasattr(scheduler, "personaspace_in_flight"):
        scheduler.personaspace_in_flight = InFlight(Limits.from_environment().directions)
    in_flight: InFlight = scheduler.personaspace_in_flight
    return in_flight


# -- where it loads models and runs passes -------------------------------------------------------------------------------


def _hash(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> str:
    """What compiled code is kept under: with the plugin it is other code than without."""
    limits = Limits.from_environment()
    slots = self.scheduler_config.max_num_seqs if self.scheduler_config is not None else 0
    hashed = f"{original(self, *args, **kwargs)} {limits} {slots} {inspect.getsource(compiled)}"
    return hashlib.sha256(hashed.encode()).hexdigest()[:10]


def _load_model(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    runner = self.model_runner
    self.personaspace = None
    self.personaspace_unfit = unsupported(runner.vllm_config)
    if not self.personaspace_unfit:
        try:
            self.personaspace = RunnerState(runner, runner.get_model(), NAMED)
            _listen(runner, self.personaspace)
        except ModelError as e:
            self.personaspace_unfit = str(e)
    if self.personaspace_unfit:
        log.warning("personaspace reads and changes nothing: %s", self.personaspace_unfit)


def _listen(runner: Any, state: RunnerState) -> None:
    """Wraps the runner's own methods: the schedule comes in by one, the batch is laid out in another."""
    execute, dummy = runner.execute_model, runner._dummy_run
    first_runner = hasattr(runner, "_prepare_inputs")
    prepare_name = "_prepare_inputs" if first_runner else "prepare_inputs"
    prepare = getattr(runner, prepare_name)

    @functools.wraps(execute)
    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not (kwargs.get("dummy_run") or (not first_runner and len(args) > 1 and args[1])):
            state.before_pass(scheduler_output)
        return execute(scheduler_output, *args, **kwargs)

    @functools.wraps(dummy)
    def dummy_run(*args: Any, **kwargs: Any) -> Any:
        state.before_dummy_pass()
        return dummy(*args, **kwargs)

    @functools.wraps(prepare)
    def prepare_inputs(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        batch = prepare(scheduler_output, *args, **kwargs)
        if first_runner:
            order: Sequence[str] = runner.input_batch.req_ids
            ids = runner.input_ids.gpu
        else:
            order, ids = batch.req_ids, batch.input_ids
        state.after_batch_prepared(order, [scheduler_output.num_scheduled_tokens[id] for id in order], ids)
        return batch

    runner.execute_model, runner._dummy_run = execute_model, dummy_run
    setattr(runner, prepare_name, prepare_inputs)


# -- what can be asked of a worker ---------------------------------------------------------------------------------------


def _take(self: Any, keys: list[str], mode: TakeMode = "final") -> bytes:
    """What was read under the keys; empty on all but one of the workers that hold the same."""
    blob: bytes = self.personaspace.take(keys, mode)
    return blob if self.rank == 0 else b""


def _define(self: Any, text: str) -> None:
    self.personaspace.define(text)


def _aim(self: Any, text: str) -> None:
    self.personaspace.aim(text)


def _why_not(self: Any) -> str:
    """Why the worker reads and changes nothing; empty where it does."""
    reason: str = self.personaspace_unfit
    return reason
