"""Looks at requests before vLLM takes them: what cannot be done is refused there, for that request alone, since a worker that
meets it in the middle of a batch could only end all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from personaspace.engines.vllm.clamps import check_clamps, directions_of
from personaspace.engines.vllm.limits import Limits, VllmModelShape
from personaspace.engines.vllm.request import FIELD, Named, parse_request
from personaspace.errors import UsageError


def unsupported(vllm_config: Any) -> str:
    """Why nothing can be read or done under a configuration of vLLM; empty where it can."""
    parallel = vllm_config.parallel_config
    if vllm_config.speculative_config is not None:
        return "speculative decoding is on: tokens that are drawn back would be counted"
    if parallel.pipeline_parallel_size > 1:
        return "pipeline parallelism is on: no worker has all layers"
    if parallel.data_parallel_size > 1:
        return "data parallelism is on: what was read would come back from one engine of several; run one server each"
    if parallel.use_ubatching:
        return "micro-batches are on: a pass has only a part of the batch"
    if vllm_config.cache_config.kv_sharing_fast_prefill:
        return "fast prefill by shared keys and values is on: later layers have only a part of the tokens"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "context parallelism is on: no worker has all tokens"
    return ""


def admit(request: Any, vllm_config: Any, named: Named) -> None:
    """Checks an `EngineCoreRequest`, and writes into it what the engine goes by. Raises `UsageError`."""
    params = request.sampling_params
    fields = (params.extra_args or {}).get(FIELD) if params is not None else None
    if fields is None:
        return
    if reason := unsupported(vllm_config):
        raise UsageError(f"{FIELD}: {reason}")
    if request.prompt_token_ids is None:
        raise UsageError(f"{FIELD}: a prompt of embeddings is not supported")
    if params.n > 1:
        raise UsageError(f"{FIELD}: n={params.n}: send one request a reply")
    shape, prompt_length = VllmModelShape.of(vllm_config), len(request.prompt_token_ids)
    parsed = parse_request(fields, named, shape.layers, shape.hidden, prompt_length)
    limits = Limits.from_environment()
    check_clamps(parsed.interventions, limits.clamps)
    if parsed.project and limits.project is None:
        raise UsageError(
            f"{FIELD}: project: started without a layer to project at; set PERSONASPACE_VLLM_PROJECT=LAYER"
        )
    if len(parsed.spans or ()) > vllm_config.scheduler_config.max_num_seqs:
        raise UsageError(f"{FIELD}: {len(parsed.spans or ())} spans; at most max_num_seqs can be read of a request")
    if salt := parsed.salt(prompt_length):
        request.cache_salt = f"{request.cache_salt or ''}|{FIELD}:{salt}"
    if parsed.spans is not None:
        params.skip_reading_prefix_cache = True
    uses = sorted(f"{layer}:{name}" for layer, name in directions_of(parsed.interventions))
    checked_fields: dict[str, Any] = {
        "key": parsed.key or request.request_id,
        "uses": uses,
        "read": list(parsed.layers),
    }
    checked_fields["interventions"] = (
        [i.to_dict() for i in parsed.interventions] if isinstance(fields, str) else fields.get("interventions")
    )
    checked_fields["spans"], checked_fields["project"] = parsed.spans, parsed.project
    params.extra_args = {**params.extra_args, FIELD: checked_fields}


@dataclass
class InFlight:
    """Which directions requests in flight use, in the process that schedules them; more than there are places for is refused.

    why_not: why the workers can do nothing; then everything is refused. Requests come in on one thread and end on another.
    """

    max_directions: int
    why_not: str = ""
    uses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, id: str, sampling_params: Any) -> None:
        """Raises `UsageError`."""
        fields = (sampling_params.extra_args or {}).get(FIELD) if sampling_params is not None else None
        if fields is None:
            return
        if self.why_not:
            raise UsageError(f"{FIELD}: {self.why_not}")
        with self._lock:
            in_use = {direction for directions in self.uses.values() for direction in directions}
            counts = Counter(direction.partition(":")[0] for direction in in_use)
            for direction in fields["uses"]:
                layer = direction.partition(":")[0]
                if direction not in in_use and counts[layer] >= self.max_directions:
                    raise UsageError(
                        f"{self.max_directions} different directions are in use at layer {layer}, as many as there are places; "
                        "set PERSONASPACE_VLLM_DIRECTIONS higher"
                    )
            self.uses[id] = tuple(fields["uses"])

    def remove(self, id: str) -> None:
        with self._lock:
            self.uses.pop(id, None)
