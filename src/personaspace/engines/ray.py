"""Many workers as one engine: Ray places them and says who was lost; it knows nothing of runs, or of what workers are asked.

Each worker is an actor with an engine of its own. Work is handed out from here, so that what a lost worker had in hand goes to
whoever is free; a new worker takes its place wherever the cluster has room (docs/decisions/0005-ray.md).
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from personaspace.engines.base import BaseEngine
from personaspace.engines.chat import Chat
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.protocol import Conversation, Engine, Layers, ModelInfo, ReadOptions, Response, Turn
from personaspace.engines.registry import load_engine
from personaspace.errors import ModelError, PersonaSpaceError, UsageError
from personaspace.files import first_line
from personaspace.model import loading, sources
from personaspace.model.interventions import Intervention

try:
    import ray
except ImportError:
    raise UsageError("engine ray needs the ray package: pip install 'personaspace[ray]'") from None

T = TypeVar("T")
R = TypeVar("R")

DEPTH = 2
"""Pieces of work in a worker's hands: the second is there when the first is done, also while this process is busy."""

TRIES = 10
"""Workers that may be lost over one piece of work, or one after the other while they load."""

TICK = 1.0
"""Seconds after which the cluster is looked at again for nodes that came."""

CHUNK = 64


class RayWorker:
    """What runs on a node: an engine, loaded once."""

    def __init__(self, kind: str, model: str, threads: int, options: dict[str, Any]) -> None:
        self.load_args = (kind, model, threads, options)
        self.engine: Engine | None = None

    def about(self) -> tuple[ModelInfo, Chat, tuple[str, int]]:
        """Loads the engine; its model, its template, and the node and process that it is in."""
        kind, model, threads, options = self.load_args
        if kind == "transformers":
            import torch

            torch.set_num_threads(threads)
        elif kind == "vllm":
            # vLLM's engine in this process: in one of its own it would outlive a worker that is killed, and keep the device.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        self.engine = load_engine(kind, model, **options)
        return self.engine.info, self.engine.chat, (ray.get_runtime_context().get_node_id(), os.getpid())

    def do(self, work: Callable[[Engine, T], R], item: T) -> R:
        """One piece of work."""
        assert self.engine is not None
        return work(self.engine, item)


@dataclass(eq=False)
class Hand:
    """A worker as seen from here: what it has in hand, by Ray's references; `joining` until its engine is loaded."""

    actor: Any
    joining: Any
    where: tuple[str, int] | None = None  # node and process
    tasks: dict[Any, int] = field(default_factory=dict)


class RayEngine(BaseEngine):
    """Workers of a cluster as one engine. workers: how many; None is as many as the cluster has room for, also later.

    address: of a running cluster; None starts one on this machine. cpus, gpus: of each worker. Raises `UsageError` where
    there is no such cluster or no room on this machine, `ModelError` where workers cannot load the model.
    """

    def __init__(
        self,
        model: str,
        *,
        address: str | None = None,
        workers: int | None = None,
        worker_engine: str = "transformers",
        cpus: int = 1,
        gpus: float = 0,
        **options: Any,
    ) -> None:
        if worker_engine == "ray":
            raise UsageError("worker_engine=ray: expected transformers or vllm")
        if address is None:
            loading.resolve(model)  # converts what must be converted once, and finds a mistake before anything starts
        super().__init__()
        _connect(address)
        self.projects_tokens = worker_engine == "transformers"
        self.workers, self.room = workers, {"CPU": cpus, "GPU": gpus}
        where = sources.from_root(model)  # workers may stand in another folder
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")(RayWorker)
        self._start: Callable[[], Any] = partial(actor.remote, worker_engine, where, cpus, options)
        self.hands: list[Hand] = []
        self._failed, self._last_look = 0, 0.0
        if address is None and not self._capacity():
            raise UsageError(
                f"no worker of {cpus} CPUs and {gpus:g} GPUs fits this machine; give fewer, or the address of a cluster"
            )
        self._about: tuple[ModelInfo, Chat] | None = None
        try:
            self.wait_for(1)
        except PersonaSpaceError:
            self.close()  # what it started must not keep the next one waiting
            raise
        assert self._about is not None
        info, self.chat = self._about
        self.info = replace(info, id=model)

    @classmethod
    def load(cls, model: str, **options: Any) -> RayEngine:
        """The same, as every engine is loaded."""
        return cls(model, **options)

    # -- work --------------------------------------------------------------------------------------------------------

    def spread(self, work: Callable[[Engine, T], R], items: Iterable[T]) -> Iterator[R]:
        """Does work on each item on some worker, and yields results as they come; a lost worker's are done again by others.

        Work must be a function that the workers can import. Raises what it raises.
        """
        item_list = list(items)
        try:
            yield from self._spread(work, item_list)
        finally:
            for hand in self.hands:  # what is still in hand is of no use to the next call
                hand.tasks.clear()

    def _spread(self, work: Callable[[Engine, T], R], items: Sequence[T]) -> Iterator[R]:
        waiting, losses = deque(range(len(items))), Counter[int]()
        unfinished = len(items)
        while unfinished:
            self._start_missing()
            for depth in range(1, DEPTH + 1):  # nobody gets a second piece before everybody has one
                for hand in self._free():
                    if waiting and len(hand.tasks) < depth:
                        k = waiting.popleft()
                        hand.tasks[hand.actor.do.remote(work, items[k])] = k
            results, missing = self._collect()
            for k in missing:
                losses[k] += 1
                if losses[k] >= TRIES:
                    raise ModelError(
                        f"{TRIES} workers were lost over the same work; it may be too large for their memory"
                    )
            waiting.extendleft(reversed(missing))
            for result in results:
                unfinished -= 1
                yield result

    def _respond(self, prompts: Sequence[Prompt], sampling: Sampling, options: ReadOptions) -> Iterator[Response]:
        keywords = {name: getattr(options, name) for name in ("interventions", "before", "along", "span")}
        work = partial(_respond, sampling=sampling, options={"read": options.layers, **keywords})
        # Some prompts at a time go to each worker, and come back as they are all done.
        for responses in self.spread(work, _chunks(prompts)):
            yield from responses

    def onsets(
        self, prompts: Iterable[Prompt], *, read: Layers, interventions: Sequence[Intervention] = ()
    ) -> Iterator[Response]:
        """See `Engine.onsets`; some prompts at a time go to each worker."""
        work = partial(_onsets, options={"read": read, "interventions": interventions})
        for responses in self.spread(work, _chunks(list(prompts))):
            yield from responses

    def _replay(self, conversations: Sequence[Conversation], options: ReadOptions) -> Iterator[list[Turn]]:
        keywords = {name: getattr(options, name) for name in ("interventions", "each", "logprobs", "span")}
        work = partial(_replay, options={"read": options.layers, **keywords})
        turns_by_chunk = dict(self.spread(work, list(enumerate(_chunks(conversations)))))
        for k in range(len(turns_by_chunk)):
            yield from turns_by_chunk[k]

    @contextmanager
    def intervening(self, *interventions: Intervention) -> Iterator[None]:
        """Workers take interventions with what they are asked. Raises `UsageError`."""
        raise UsageError("on a cluster, give interventions with each call")
        yield

    def wait_for(self, workers: int) -> None:
        """Waits until so many workers have loaded the model."""
        while len(self._free()) < workers:
            self._start_missing()
            self._collect()

    def close(self) -> None:
        """Lets the workers go."""
        for hand in self.hands:
            ray.kill(hand.actor)
        self.hands = []

    # -- workers -----------------------------------------------------------------------------------------------------

    def _start_missing(self) -> None:
        """As many workers as are wanted; those that do not fit wait for a node to come."""
        if len(self.hands) < (self.workers or 1) or (
            self.workers is None and time.monotonic() - self._last_look > TICK
        ):
            target = self.workers or max(1, self._capacity())
            self._last_look = time.monotonic()
            for _ in range(target - len(self.hands)):
                actor = self._start()
                self.hands.append(Hand(actor, actor.about.remote()))

    def _free(self) -> list[Hand]:
        """Workers that are ready, those with the least in hand first."""
        return sorted((h for h in self.hands if h.joining is None), key=lambda h: len(h.tasks))

    def _collect(self) -> tuple[list[Any], list[int]]:
        """Waits a moment for news: results that came, and the pieces that lost workers had in hand."""
        hand_by_ref = {
            ref: h for h in self.hands for ref in (*h.tasks, *([h.joining] if h.joining is not None else []))
        }
        done, _ = ray.wait(list(hand_by_ref), num_returns=1, timeout=TICK)
        results, missing = [], []
        for ref in done:
            hand = hand_by_ref[ref]
            if hand not in self.hands:
                continue
            try:
                result = ray.get(ref)
            except ray.exceptions.RayTaskError as e:
                if ref != hand.joining or self._about is None:
                    # What was raised in a worker, as it was raised there if it is meant for the user.
                    raise e.cause if isinstance(e.cause, PersonaSpaceError) else e from None
                missing += self._drop(hand, e.cause)  # others have loaded the same; its device may not be free yet
                continue
            except ray.exceptions.RayError as e:
                missing += self._drop(hand, e)
                continue
            if ref == hand.joining:
                self._mark_ready(hand, *result)
            else:
                del hand.tasks[ref]
                results.append(result)
        return results, missing

    def _mark_ready(self, hand: Hand, info: ModelInfo, chat: Chat, where: tuple[str, int]) -> None:
        hand.joining, hand.where, self._failed = None, where, 0
        if self._about is None:
            self._about = (info, chat)
        elif info.fingerprint != self._about[0].fingerprint:
            raise ModelError(
                f"a worker loaded other weights ({info.fingerprint}) than the first ({self._about[0].fingerprint})"
            )

    def _drop(self, hand: Hand, error: Exception) -> list[int]:
        """Forgets a worker; returns what it had in hand."""
        self.hands.remove(hand)
        ray.kill(hand.actor)  # it may only be out of reach: nobody works for who has been given up
        if hand.joining is not None:
            self._failed += 1
            if self._failed >= TRIES:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ModelError(f"{TRIES} workers were lost while they loaded the model: {reason}")
        return list(hand.tasks.values())

    def _capacity(self) -> int:
        """How many workers the nodes that are there have room for."""
        rooms = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        return sum(int(min(r.get(k, 0) // v for k, v in self.room.items() if v)) for r in rooms)


def _connect(address: str | None) -> None:
    """Joins the cluster at an address, or starts one here, which listens to this machine alone. Raises `UsageError`."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    starts_here = address is None and "RAY_ADDRESS" not in os.environ
    options: dict[str, Any] = {"address": address}
    if starts_here:  # "local", since without an address Ray joins whatever cluster somebody has started on this machine
        options = {"address": "local", "include_dashboard": False}
    try:
        with _loopback() if starts_here else nullcontext():
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
        # What Ray says of each lost worker would go to stdout, where `--json` answers.
        ray._private.worker._worker_logs_enabled = False
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise UsageError(f"address={address}: no Ray cluster can be joined: {first_line(e)}") from None


@contextmanager
def _loopback() -> Iterator[None]:
    """While it lasts, a cluster that is started is one node at 127.0.0.1, to which nobody else can connect: whoever reaches a
    port of Ray's can have it run code. `_node_ip_address="127.0.0.1"` would not do: Ray takes it for the machine's own address,
    unless it is told, by a setting of its own and in its processes' environment, that this is no machine for clusters."""
    constants, setting = ray._private.ray_constants, ray._private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    constant, variable = constants.ENABLE_RAY_CLUSTER, os.environ.get(setting)
    constants.ENABLE_RAY_CLUSTER, os.environ[setting] = False, "0"
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = constant
        if variable is None:
            del os.environ[setting]
        else:
            os.environ[setting] = variable


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def _respond(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, options: dict[str, Any]) -> list[Response]:
    return list(engine.respond(prompts, sampling, **options))


def _onsets(engine: Engine, prompts: Sequence[Prompt], options: dict[str, Any]) -> list[Response]:
    return list(engine.onsets(prompts, **options))


def _replay(
    engine: Engine, chunk: tuple[int, Sequence[Conversation]], options: dict[str, Any]
) -> tuple[int, list[list[Turn]]]:
    return chunk[0], list(engine.replay(chunk[1], **options))
