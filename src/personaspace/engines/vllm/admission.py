"""Looks at requests before vLLM takes them: what cannot be done is refused there, for that request alone, since a worker that
meets it in the middle of a batch could only end all of them."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from personaspace.engines.vllm.clamps import check_clamps, directions_of
from personaspace.engines.vllm.limits import Limits, VllmModelShape
from personaspace.engines.vllm.readout import MAX_STOP_TOKENS
from personaspace.engines.vllm.request import FIELD, Named, parse_request
from personaspace.errors import UsageError
from personaspace.model.interventions import Intervention

CLIENT: ContextVar[str] = ContextVar("personaspace_client", default="")
"""Who asks, as the server in front knows it; empty where the engine is called from Python, which has no client's limits."""

SERVED: set[str] = set()
"""Directions of the server's own caps, which every client may use."""

SHARE = 4
"""A client may use one in so many of the directions of a layer at once."""


def serve_caps(interventions: Iterable[Intervention]) -> None:
    """From now on these are the server's own: a client's own ones never take their places."""
    SERVED.update(_names(interventions))


def _names(interventions: Iterable[Intervention]) -> list[str]:
    return sorted(f"{layer}:{name}" for layer, name in directions_of(interventions))


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
    if (count := len(params.stop_token_ids or ())) > MAX_STOP_TOKENS:
        raise UsageError(f"{FIELD}: {count} stop tokens; at most {MAX_STOP_TOKENS} can be told from a reply")
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
    uses = _names(parsed.interventions)
    checked_fields: dict[str, Any] = {
        "key": parsed.key or request.request_id,
        "uses": uses,
        "shared": [direction for direction in uses if direction in SERVED],
        "client": CLIENT.get(),
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
    Of a server's clients each has a share of the places, and those of its own caps (`shared`) always find one.

    why_not: why the workers can do nothing; then everything is refused. Requests come in on one thread and end on another.
    """

    max_directions: int
    why_not: str = ""
    uses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    clients: dict[str, str] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def add(self, id: str, sampling_params: Any) -> None:
        """Raises `UsageError`."""
        fields = (sampling_params.extra_args or {}).get(FIELD) if sampling_params is not None else None
        if fields is None:
            return
        if self.why_not:
            raise UsageError(f"{FIELD}: {self.why_not}")
        with self._lock:
            self.shared.update(fields.get("shared", ()))
            client = fields.get("client", "")
            self.uses[id], self.clients[id] = (), client
            try:
                # One by one: those of the same request count, too.
                for direction in fields["uses"]:
                    self._check(direction, client)
                    self.uses[id] += (direction,)
            except UsageError:
                del self.uses[id], self.clients[id]
                raise

    def _check(self, direction: str, client: str) -> None:
        layer = direction.partition(":")[0]
        in_use = self._at(layer)
        if direction in self.shared or not client:
            if direction not in in_use and len(in_use) >= self.max_directions:
                raise UsageError(
                    f"{self.max_directions} different directions are in use at layer {layer}, as many as there are places; "
                    "set PERSONASPACE_VLLM_DIRECTIONS higher"
                )
            return
        share = max(1, self.max_directions // SHARE)
        clients_own = self._at(layer, client) - self.shared
        if direction not in clients_own and len(clients_own) >= share:
            raise UsageError(
                f"a client may use {share} different directions of its own at layer {layer} at once; wait for a reply, or set "
                "PERSONASPACE_VLLM_DIRECTIONS higher"
            )
        if direction not in in_use and len(in_use - self.shared) >= max(1, self.max_directions - 1):
            raise UsageError(
                f"clients use {len(in_use - self.shared)} different directions of their own at layer {layer}, as many as there "
                "are places beside the server's caps; try again later, or set PERSONASPACE_VLLM_DIRECTIONS higher"
            )

    def _at(self, layer: str, client: str | None = None) -> set[str]:
        """The directions in use at a layer, by everybody or by a client."""
        return {
            direction
            for id, directions in self.uses.items()
            if client is None or self.clients.get(id) == client
            for direction in directions
            if direction.partition(":")[0] == layer
        }

    def remove(self, id: str) -> None:
        with self._lock:
            self.uses.pop(id, None)
            self.clients.pop(id, None)
