"""The engine `vllm`: the protocol over vLLM's own engine, for throughput. Its plugin does the reading and intervening."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personaspace.engines.base import Loaded, check_finite, end_ids
from personaspace.engines.chat import Chat, Span
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.protocol import Conversation, Layers, ModelInfo, Response, Token, Turn
from personaspace.engines.vllm import checkpoint, plugin
from personaspace.engines.vllm.readout import How
from personaspace.engines.vllm.request import FIELD
from personaspace.engines.vllm.wire import Reading, gathered
from personaspace.errors import ActivationError, ModelError, UsageError
from personaspace.model import loading
from personaspace.model.interventions import Intervention
from personaspace.model.residual import check_interventions

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class VllmEngine(Loaded):
    """A model in vLLM that answers prompts and replays conversations. core: vLLM's `LLMEngine`, made with the plugin on.

    A reply's text at a temperature above 0 differs from engine `transformers`': vLLM draws with its own random numbers.
    """

    projects_tokens = False

    def __init__(self, core: Any, folder: Path, *, id: str) -> None:
        super().__init__()
        self.core = core
        config = core.vllm_config.model_config
        text = config.hf_text_config
        self.tokenizer = loading.load_tokenizer(folder, id)
        self.chat = Chat(self.tokenizer, _end_ids(folder, self.tokenizer, text))
        self.rows = int(core.vllm_config.scheduler_config.max_num_seqs)
        self.model = ModelInfo(
            id=id,
            revision=getattr(config.hf_config, "_commit_hash", None),
            layers=int(text.num_hidden_layers),
            hidden=int(config.get_hidden_size()),
            dtype=str(config.dtype).removeprefix("torch."),
            fingerprint=checkpoint.of_config(core.vllm_config, folder),
            template=self.chat.kind,
            context=int(config.max_model_len),
            notes={"beginning": self.chat.beginning(), "compiled": str(core.vllm_config.compilation_config.mode)},
        )
        self._told = plugin.Told()
        self._fit = False
        self._numbers = itertools.count()
        self._arrived: dict[str, Any] = {}

    @classmethod
    def load(
        cls, name: str, *, device: str | None = None, dtype: str | None = None, rows: int | None = None, **options: Any
    ) -> VllmEngine:
        """Loads `smollm2`, a Hub id, a folder or a GGUF file; options are vLLM's own (`EngineArgs`). Raises `ModelError`."""
        try:
            from vllm import EngineArgs, LLMEngine
        except ImportError as e:
            raise UsageError(f"--engine vllm needs vLLM: pip install 'personaspace[vllm]' ({e})") from None
        if device not in (None, "cpu", "cuda"):
            raise UsageError(f"--device {device}: vLLM runs on the device that it was built for")
        given = dtype or ("fp32" if not torch.cuda.is_available() else "bf16")
        if given not in DTYPES:
            raise UsageError(f"--dtype {given}: expected one of {', '.join(DTYPES)}")
        if rows:
            options["max_num_seqs"] = rows
        options.setdefault("trust_remote_code", False)
        folder = _folder(name)
        plugin.register()
        try:
            core = LLMEngine.from_engine_args(EngineArgs(model=str(folder), dtype=DTYPES[given], **options))
        except (RuntimeError, ValueError, TypeError, OSError) as e:
            said = str(e).strip().splitlines() or [type(e).__name__]
            raise ModelError(f"vLLM cannot load {name!r}: {said[-1][:300]} (its own lines above say more)") from e
        return cls(core, folder, id=name)

    def close(self) -> None:
        """Ends vLLM's processes and frees what they hold."""
        self.core.engine_core.shutdown()

    # -- answering -------------------------------------------------------------------------------------------------

    def respond(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling,
        *,
        read: Layers | None = None,
        interventions: Sequence[Intervention] = (),
        before: bool = False,
        along: Tensor | None = None,
    ) -> Iterator[Response]:
        """See `Engine.respond`. Raises `ActivationError` where NaN or Inf is read, `UsageError` for `before` and `along`."""
        if along is not None:
            raise UsageError(
                "engine vllm projects tokens at one layer that it was started with, not at each that is read"
            )
        if before:
            raise UsageError("engine vllm does not read activations as they were before the interventions")
        waiting = iter(list(prompts))
        asked: dict[str, Prompt] = {}

        def more() -> None:
            for prompt in itertools.islice(waiting, 2 * self.rows - len(asked)):
                own = prompt.sampling or sampling
                mine = interventions if prompt.interventions is None else prompt.interventions
                asked[self._send(self.chat.prompt_ids(prompt.messages), own, prompt.seed, read, mine)] = prompt

        try:
            more()
            while asked:
                self._step()
                ended = [id for id in asked if id in self._arrived and self._arrived[id].finished]
                readings = self._take(ended) if read else {}
                for id in ended:
                    yield self._response(asked.pop(id), self._arrived.pop(id), sampling, readings.get(id), bool(read))
                more()
        finally:
            self._forget(asked)

    def _send(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        seed: int | None,
        read: Layers | None,
        interventions: Sequence[Intervention],
        spans: Sequence[tuple[int, int]] | None = None,
        **params: Any,
    ) -> str:
        """Hands vLLM a request; the id that its outputs come under."""
        from vllm.exceptions import VLLMClientError

        from vllm import SamplingParams

        id = f"personaspace-{next(self._numbers)}"
        mine = (*self._ambient, *interventions)
        if read or mine:
            self._check_fit()
        ask: dict[str, Any] = {"read": list(self._layers(read)), "interventions": self._define(mine)}
        if spans is not None:
            ask["spans"] = [list(span) for span in spans]
        # The last token of a reply that is cut short is fed, for the sake of reading it, where one more is asked for.
        most = sampling.max_new_tokens + (1 if read and spans is None else 0)
        settings = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=most,
            seed=None if seed is None else seed % (1 << 62),
            stop_token_ids=sorted(self.chat.end_ids),
            detokenize=False,
            extra_args={FIELD: ask} if read or mine else None,
            **params,
        )
        try:
            self.core.add_request(id, {"prompt_token_ids": list(ids)}, settings)
        except VLLMClientError as e:
            raise UsageError(f"vLLM refuses the request: {e}") from None
        return id

    def _check_fit(self) -> None:
        """Raises `ModelError` where the workers can read and change nothing."""
        if not self._fit:
            if why := next(filter(None, self.core.collective_rpc("personaspace_why_not")), ""):
                raise ModelError(f"engine vllm cannot read {self.model.id} or hold it: {why}")
            self._fit = True

    def _define(self, interventions: Sequence[Intervention]) -> list[str]:
        """Tells the workers of interventions that they do not know yet; their names."""
        check_interventions(interventions, self.model.layers, self.model.hidden)
        if news := self._told.news(interventions):
            self.core.collective_rpc("personaspace_define", args=(news,))
            self._told.known(interventions)
        return [i.key for i in interventions]

    def _step(self) -> None:
        """One step of vLLM's; what came out waits under its id."""
        for output in self.core.step():
            if output.finished and output.outputs[0].finish_reason == "error":
                raise ModelError(
                    "vLLM gave a request up: its own lines above say why (so many directions at a layer at once that "
                    "PERSONASPACE_VLLM_DIRECTIONS has to be higher are one reason)"
                )
            self._arrived[output.request_id] = output

    def _take(self, ids: Sequence[str], how: How = "end") -> dict[str, Reading]:
        if not ids:
            return {}
        return gathered(self.core.collective_rpc("personaspace_take", args=(list(ids), how)))

    def _forget(self, ids: Iterable[str]) -> None:
        """Requests whose replies nobody waits for any more."""
        left = [id for id in ids if not (id in self._arrived and self._arrived[id].finished)]
        if left:
            if self._fit:
                self._take(left)  # nothing is left that nobody fetches
            self.core.abort_request(left)
        for id in ids:
            self._arrived.pop(id, None)

    def _response(
        self, prompt: Prompt, output: Any, sampling: Sampling, reading: Reading | None, read: bool
    ) -> Response:
        most = (prompt.sampling or sampling).max_new_tokens
        ids = self._reply(output, most)
        finish = "length" if len(ids) == most or output.outputs[0].finish_reason == "length" else "stop"
        text = self.chat.decode(ids)
        if not read:
            return Response(prompt, text, ids, finish)
        found = _whole(reading)
        check_finite(found.activation[0], found.layers, prompt)
        return Response(prompt, text, ids, finish, found.activation[0], found.norms[0], None, int(found.touched[0]))

    def _reply(self, output: Any, most: int) -> tuple[int, ...]:
        ids = tuple(output.outputs[0].token_ids)
        if ids and ids[-1] in self.chat.end_ids:
            ids = ids[:-1]
        return ids[:most]

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        read: Layers | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> Iterator[Token]:
        """See `Engine.stream`. Raises `UsageError` for reading under asynchronous scheduling, where a token's own activation
        is not known step by step."""
        if read and self.core.vllm_config.scheduler_config.async_scheduling:
            raise UsageError("engine vllm reads token by token only when it was loaded with async_scheduling=False")
        own = prompt.sampling or sampling
        mine = interventions if prompt.interventions is None else prompt.interventions
        return self._stream(self._send(self.chat.prompt_ids(prompt.messages), own, prompt.seed, read, mine), own, read)

    def _stream(self, id: str, sampling: Sampling, read: Layers | None) -> Iterator[Token]:
        shown, fed, finish = "", 0, ""
        try:
            while not finish:
                self._step()
                output = self._arrived.pop(id, None)
                if output is None:
                    continue
                reading = self._take([id], "end" if output.finished else "anew").get(id) if read else None
                ids = self._reply(output, sampling.max_new_tokens)
                if output.finished:
                    finish = "length" if len(ids) == sampling.max_new_tokens else output.outputs[0].finish_reason
                text = self.chat.decode(ids)
                # The bytes of a character may be spread over tokens: it is shown once it is whole.
                ready = text if finish else text.rstrip("\ufffd")
                new = ids[fed] if len(ids) > fed else None
                known = reading is not None and fed > 0 and int(reading.tokens[0]) > 0
                read_of = reading.activation[0] if known and reading is not None else None
                touched = bool(known and reading is not None and int(reading.touched[0]))
                yield Token(fed, new, ready[len(shown) :], read_of, touched, finish)
                shown, fed = ready, len(ids)
        finally:
            if not finish:
                self._forget([id])

    # -- replaying -------------------------------------------------------------------------------------------------

    def replay(
        self,
        conversations: Sequence[Conversation],
        *,
        read: Layers,
        interventions: Sequence[Intervention] = (),
        each: bool = False,
        logprobs: bool = False,
    ) -> Iterator[list[Turn]]:
        """See `Engine.replay`: the conversations are prompts whose spans are read. Raises `UsageError` for `each`."""
        if each:
            raise UsageError("engine vllm hands out means, not every token's activation; use --engine transformers")
        spans, places = self._spans(conversations)
        most = max((len(s.spans) for s in spans), default=0)
        if most > self.rows:
            raise UsageError(f"{most} turns to read in a conversation; at most {self.rows} (rows=…)")
        return self._replay(spans, places, read, interventions, logprobs)

    def _replay(
        self,
        spans: Sequence[Span],
        places: Sequence[Sequence[int]],
        read: Layers,
        interventions: Sequence[Intervention],
        logprobs: bool,
    ) -> Iterator[list[Turn]]:
        flying: dict[str, int] = {}
        results: dict[int, list[Turn]] = {}
        sent = shown = 0
        try:
            while shown < len(spans):
                # Every span in flight has a place of its own on the device.
                while sent < len(spans) and (
                    not flying
                    or sum(len(spans[k].spans) for k in flying.values()) + len(spans[sent].spans) <= self.rows
                ):
                    extra = {"prompt_logprobs": 0} if logprobs else {}
                    s = spans[sent]
                    one = Sampling(temperature=0, max_new_tokens=1)
                    # Where no layer is wanted one is read all the same: the workers count what was touched by it.
                    layers = read or (0,)
                    flying[self._send(s.token_ids, one, None, layers, interventions, s.spans, **extra)] = sent
                    sent += 1
                self._step()
                ended = [id for id in flying if id in self._arrived and self._arrived[id].finished]
                readings = self._take(ended)
                for id in ended:
                    k = flying.pop(id)
                    found = _whole(readings.get(id))
                    if not read:
                        found = replace(found, activation=found.activation[:, :0], norms=found.norms[:, :0])
                    results[k] = _turns(spans[k], places[k], found, self._arrived.pop(id), logprobs)
                while shown in results:
                    yield results.pop(shown)
                    shown += 1
        finally:
            self._forget(flying)


def _turns(span: Span, places: Sequence[int], reading: Reading, output: Any, logprobs: bool) -> list[Turn]:
    turns = []
    for k, (index, (a, b)) in enumerate(zip(places, span.spans, strict=True)):
        own: list[float] = []
        if logprobs:
            own = [output.prompt_logprobs[t][span.token_ids[t]].logprob for t in range(max(a, 1), b)]
        mean = sum(own) / len(own) if own else None
        turns.append(Turn(index, b - a, reading.activation[k], reading.norms[k], None, mean, int(reading.touched[k])))
    return turns


def _whole(reading: Reading | None) -> Reading:
    if reading is None:
        raise ActivationError("what was read is lost: it was kept too long, or there was no place for it in a step")
    return reading


def _folder(name: str) -> Path:
    """The folder that holds a model's files, fetched from the Hub where it must be. Raises `ModelError`."""
    where = loading.resolve(name)
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(where, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except OSError as e:
        raise ModelError(f"cannot load the model {name!r} ({str(e).splitlines()[0][:200]})") from None


def _end_ids(folder: Path, tokenizer: Any, config: Any) -> frozenset[int]:
    """The tokens that end a reply, from the generation settings, the configuration and the tokenizer."""
    settings: Mapping[str, Any] = {}
    if (folder / "generation_config.json").is_file():
        settings = json.loads((folder / "generation_config.json").read_text())
    configured = settings.get("eos_token_id", getattr(config, "eos_token_id", None))
    return end_ids(configured, tokenizer)
