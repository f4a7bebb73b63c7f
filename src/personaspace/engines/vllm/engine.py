"""The engine `vllm`: the protocol over vLLM's own engine, for throughput. Its plugin does the reading and intervening."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from personaspace.engines.base import BaseEngine, check_finite
from personaspace.engines.chat import Chat, ReplyText, Span, Thinking, is_text
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.protocol import Conversation, Layers, ModelInfo, ReadOptions, Response, Token, Turn
from personaspace.engines.thoughts import ReplyParts, texts
from personaspace.engines.vllm import checkpoint, folders, plugin
from personaspace.engines.vllm.options import model_length, read_options
from personaspace.engines.vllm.readout import TakeMode
from personaspace.engines.vllm.request import FIELD
from personaspace.engines.vllm.wire import ReadMeans, gathered
from personaspace.errors import ActivationError, ModelError, UsageError
from personaspace.model import loading
from personaspace.model.dtypes import torch_name
from personaspace.model.interventions import Intervention
from personaspace.model.residual import check_interventions


class VllmEngine(BaseEngine):
    """A model in vLLM that answers prompts and replays conversations. core: vLLM's `LLMEngine`, made with the plugin on.

    A reply's text at a temperature above 0 differs from engine `transformers`': vLLM draws with its own random numbers.
    """

    projects_tokens = False

    def __init__(self, core: Any, folder: Path, *, id: str, thinking: Thinking = False) -> None:
        super().__init__()
        self.core = core
        config = core.vllm_config.model_config
        text = config.hf_text_config
        self.tokenizer = loading.load_tokenizer(folder, id)
        self.chat = Chat(self.tokenizer, folders.end_ids_of(folder, self.tokenizer, text), thinking=thinking)
        self.rows = int(core.vllm_config.scheduler_config.max_num_seqs)
        self.info = ModelInfo(
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
        if self.chat.thinking_rule:
            self.info.notes["thinking"] = self.chat.thinking_rule
        self._registry = plugin.InterventionRegistry()
        self._fit = False
        self._numbers = itertools.count()
        self._arrived: dict[str, Any] = {}

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        rows: int | None = None,
        tokens: int | None = None,
        arguments: Sequence[str] = (),
        thinking: Thinking = False,
        **options: Any,
    ) -> VllmEngine:
        """Loads `smollm2`, a Hub id, a folder, a GGUF file or an adapter on its model. tokens: of the longest conversation,
        where that is known: there is room for it, and for no longer ones. arguments: vLLM's own options as on its command line
        (`--tensor-parallel-size=2`); options: the same as `EngineArgs` has them. Raises `ModelError`, `UsageError`."""
        try:
            from vllm import EngineArgs, LLMEngine
        except ImportError as e:
            raise UsageError(f"engine vllm needs vLLM: pip install 'personaspace[vllm]' ({e})") from None
        if device not in (None, "cpu", "cuda"):
            raise UsageError(f"device={device}: vLLM runs on the device that it was built for")
        dtype_name = torch_name(dtype or ("fp32" if not torch.cuda.is_available() else "bf16"))
        if rows:
            options["max_num_seqs"] = rows
        options |= read_options(arguments, {f.name for f in dataclasses.fields(EngineArgs)} - {"model", "tokenizer"})
        options.setdefault("trust_remote_code", False)
        folder = folders.folder_of(name)
        if tokens:
            options.setdefault("max_model_len", model_length(tokens, folder))
        # What vLLM's own options say stands over what ours say.
        options = {"model": str(folder), "dtype": dtype_name, **options}
        plugin.register()
        try:
            core = LLMEngine.from_engine_args(EngineArgs(**options))
        except (RuntimeError, ValueError, TypeError, OSError) as e:
            error_lines = str(e).strip().splitlines() or [type(e).__name__]
            raise ModelError(
                f"vLLM cannot load {name!r}: {error_lines[-1][:300]} (its own lines above say more)"
            ) from e
        return cls(core, folder, id=name, thinking=thinking)

    def close(self) -> None:
        """Ends vLLM's processes and frees what they hold."""
        self.core.engine_core.shutdown()

    # -- answering -------------------------------------------------------------------------------------------------

    def _respond(self, prompts: Sequence[Prompt], sampling: Sampling, options: ReadOptions) -> Iterator[Response]:
        if options.along is not None:
            raise UsageError(
                "engine vllm projects tokens at one layer that it was started with, not at each that is read"
            )
        if options.before:
            raise UsageError("engine vllm does not read activations as they were before the interventions")
        return self._respond_all(prompts, sampling, options)

    def _respond_all(self, prompts: Sequence[Prompt], sampling: Sampling, options: ReadOptions) -> Iterator[Response]:
        waiting = iter(prompts)
        in_flight: dict[str, Prompt] = {}
        in_parts: list[Response] = []

        def send_more() -> None:
            for prompt in itertools.islice(waiting, 2 * self.rows - len(in_flight)):
                ids = self.chat.prompt_ids(prompt.messages)
                applied = options.interventions_of(prompt)
                id = self._send(ids, prompt.sampling or sampling, prompt.seed, options.layers, applied)
                in_flight[id] = prompt

        try:
            send_more()
            while in_flight:
                self._step()
                ended = [id for id in in_flight if id in self._arrived and self._arrived[id].finished]
                readings = self._take(ended) if options.layers else {}
                for id in ended:
                    prompt, output = in_flight.pop(id), self._arrived.pop(id)
                    response = self._response(prompt, output, sampling, readings.get(id), options)
                    # What was read is of all tokens: a part of them is read once nothing else is under way.
                    if options.layers and options.span != "all" and response.tokens != len(response.token_ids):
                        in_parts.append(response)
                    else:
                        yield response
                send_more()
            for response in in_parts:
                yield self._read_part(response, options)
        finally:
            self._forget(in_flight)

    def _send(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        seed: int | None,
        read: Layers,
        interventions: Sequence[Intervention],
        spans: Sequence[tuple[int, int]] | None = None,
        **params: Any,
    ) -> str:
        """Hands vLLM a request; the id that its outputs come under."""
        from vllm.exceptions import VLLMClientError

        from vllm import SamplingParams

        id = f"personaspace-{next(self._numbers)}"
        if read or interventions:
            self._check_fit()
        fields: dict[str, Any] = {"read": list(read), "interventions": self._define(interventions)}
        if spans is not None:
            fields["spans"] = [list(span) for span in spans]
        # The last token of a reply that is cut short is fed, for the sake of reading it, where one more is asked for.
        max_tokens = sampling.max_new_tokens + (1 if read and spans is None else 0)
        settings = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            max_tokens=max_tokens,
            seed=None if seed is None else seed % (1 << 62),
            stop_token_ids=sorted(self.chat.end_ids),
            detokenize=False,
            extra_args={FIELD: fields} if read or interventions else None,
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
            if reason := next(filter(None, self.core.collective_rpc("personaspace_why_not")), ""):
                raise ModelError(f"engine vllm cannot read {self.info.id} or hold it: {reason}")
            self._fit = True

    def _define(self, interventions: Sequence[Intervention]) -> list[str]:
        """Sends the workers the interventions that they do not have yet; their names."""
        check_interventions(interventions, self.info.layers, self.info.hidden)
        if definitions := self._registry.unsent(interventions):
            self.core.collective_rpc("personaspace_define", args=(definitions,))
            self._registry.mark_sent(interventions)
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

    def _take(self, ids: Sequence[str], mode: TakeMode = "final") -> dict[str, ReadMeans]:
        if not ids:
            return {}
        return gathered(self.core.collective_rpc("personaspace_take", args=(list(ids), mode)))

    def _forget(self, ids: Iterable[str]) -> None:
        """Requests whose replies nobody waits for any more."""
        unfinished = [id for id in ids if not (id in self._arrived and self._arrived[id].finished)]
        if unfinished:
            if self._fit:
                self._take(unfinished)  # nothing is left that nobody fetches
            self.core.abort_request(unfinished)
        for id in ids:
            self._arrived.pop(id, None)

    def _response(
        self, prompt: Prompt, output: Any, sampling: Sampling, reading: ReadMeans | None, options: ReadOptions
    ) -> Response:
        max_tokens = (prompt.sampling or sampling).max_new_tokens
        ids = self._reply(output, max_tokens)
        finish = "length" if len(ids) == max_tokens or output.outputs[0].finish_reason == "length" else "stop"
        parts = self.chat.parts(prompt.messages, ids) if self.chat.thinks else ReplyParts((0, len(ids)))
        text, thinking = texts(self.chat.decode, ids, parts)
        response = Response(prompt, text, ids, finish, thinking=thinking)
        if self.chat.thinks:
            read = parts.range_of(options.span, len(ids))
            response = dataclasses.replace(response, answer=parts.answer, read=read)
        if not options.layers:
            return response
        means = _require_means(reading)
        check_finite(means.activation[0], means.layers, prompt)
        activation, norms, touched = means.activation[0], means.norms[0], int(means.touched[0])
        return dataclasses.replace(response, activation=activation, norms=norms, touched=touched)

    def _read_part(self, response: Response, options: ReadOptions) -> Response:
        """The response with the part of it read that is wanted, from one more pass over its tokens."""
        assert response.read is not None
        assert response.activation is not None
        assert response.norms is not None
        start, end = response.read
        if start == end:
            zeros = torch.zeros_like(response.activation), torch.zeros_like(response.norms)
            return dataclasses.replace(response, activation=zeros[0], norms=zeros[1], touched=0)
        prompt_ids = self.chat.prompt_ids(response.prompt.messages)
        first = len(prompt_ids)
        # What was generated before it is generated to interventions, too.
        spans = [(first, first + start)] * (start > 0) + [(first + start, first + end)]
        span = Span((*prompt_ids, *response.token_ids[:end]), tuple(spans))
        applied = options.interventions_of(response.prompt)
        (turns,) = self._replay([span], dataclasses.replace(options, interventions=applied, ambient=()))
        turn = turns[-1]
        return dataclasses.replace(response, activation=turn.activation, norms=turn.norms, touched=turn.touched)

    def _reply(self, output: Any, max_tokens: int) -> tuple[int, ...]:
        ids = tuple(output.outputs[0].token_ids)
        if ids and ids[-1] in self.chat.end_ids:
            ids = ids[:-1]
        return ids[:max_tokens]

    def _stream(self, prompt: Prompt, sampling: Sampling, options: ReadOptions) -> Iterator[Token]:
        if options.layers and self.core.vllm_config.scheduler_config.async_scheduling:
            # A token's own activation is not known step by step then.
            raise UsageError("engine vllm reads token by token only when it was loaded with async_scheduling=False")
        ids = self.chat.prompt_ids(prompt.messages)
        id = self._send(ids, sampling, prompt.seed, options.layers, options.interventions_of(prompt))
        reply = ReplyText(self.chat.decode, None if is_text(prompt.messages) else self.chat.splitter(ids))
        return self._tokens(id, sampling, options.layers, reply)

    def _tokens(self, id: str, sampling: Sampling, layers: Layers, reply: ReplyText) -> Iterator[Token]:
        fed, finish = 0, ""
        try:
            while not finish:
                self._step()
                output = self._arrived.pop(id, None)
                if output is None:
                    continue
                reading = self._take([id], "final" if output.finished else "reset").get(id) if layers else None
                ids = self._reply(output, sampling.max_new_tokens)
                if output.finished:
                    finish = "length" if len(ids) == sampling.max_new_tokens else output.outputs[0].finish_reason
                new = ids[fed] if len(ids) > fed else None
                was_read = reading is not None and fed > 0 and int(reading.tokens[0]) > 0
                activation = reading.activation[0] if was_read and reading is not None else None
                touched = bool(was_read and reading is not None and int(reading.touched[0]))
                thought = len(reply.thinking)
                text = reply.add(ids, final=bool(finish))
                is_answer = reply.splitter is None or fed > reply.splitter.parts.answer[0]
                yield Token(fed, new, text, activation, touched, finish, reply.thinking[thought:], is_answer)
                fed = len(ids)
        finally:
            if not finish:
                self._forget([id])

    # -- replaying -------------------------------------------------------------------------------------------------

    def _replay(self, conversations: Sequence[Conversation], options: ReadOptions) -> Iterator[list[Turn]]:
        """The conversations are prompts whose spans are read."""
        if options.each:
            raise UsageError("engine vllm hands out means, not every token's activation; engine transformers has them")
        spans, places = self._spans(conversations, options.span)
        most_spans = max((len(s.spans) for s in spans), default=0)
        if most_spans > self.rows:
            raise UsageError(f"{most_spans} turns to read in a conversation; at most {self.rows} (rows=…)")
        return self._replay_spans(spans, places, options)

    def _replay_spans(
        self, spans: Sequence[Span], places: Sequence[Sequence[int]], options: ReadOptions
    ) -> Iterator[list[Turn]]:
        in_flight: dict[str, int] = {}
        results: dict[int, list[Turn]] = {}
        sent = shown = 0
        try:
            while shown < len(spans):
                # Every span in flight has a place of its own on the device.
                while sent < len(spans) and (
                    not in_flight
                    or sum(len(spans[place].spans) for place in in_flight.values()) + len(spans[sent].spans)
                    <= self.rows
                ):
                    span = spans[sent]
                    if not span.spans:  # nobody has replied in it yet
                        results[sent] = []
                        sent += 1
                        continue
                    extra = {"prompt_logprobs": 0} if options.logprobs else {}
                    one_token = Sampling(temperature=0, max_new_tokens=1)
                    # Where no layer is wanted one is read all the same: the workers count what was touched by it.
                    layers, applied = options.layers or (0,), options.interventions
                    id = self._send(span.token_ids, one_token, None, layers, applied, span.spans, **extra)
                    in_flight[id] = sent
                    sent += 1
                if in_flight:
                    self._step()
                ended = [id for id in in_flight if id in self._arrived and self._arrived[id].finished]
                readings = self._take(ended)
                for id in ended:
                    place = in_flight.pop(id)
                    means = _require_means(readings.get(id))
                    if not options.layers:
                        means = dataclasses.replace(means, activation=means.activation[:, :0], norms=means.norms[:, :0])
                    results[place] = _turns(spans[place], places[place], means, self._arrived.pop(id), options.logprobs)
                while shown in results:
                    yield results.pop(shown)
                    shown += 1
        finally:
            self._forget(in_flight)


def _turns(span: Span, places: Sequence[int], reading: ReadMeans, output: Any, logprobs: bool) -> list[Turn]:
    turns = []
    for k, (index, (a, b)) in enumerate(zip(places, span.spans, strict=True)):
        token_logprobs: list[float] = []
        if logprobs:
            token_logprobs = [output.prompt_logprobs[t][span.token_ids[t]].logprob for t in range(max(a, 1), b)]
        mean = sum(token_logprobs) / len(token_logprobs) if token_logprobs else None
        turns.append(Turn(index, b - a, reading.activation[k], reading.norms[k], None, mean, int(reading.touched[k])))
    return turns


def _require_means(reading: ReadMeans | None) -> ReadMeans:
    if reading is None:
        raise ActivationError("what was read is lost: it was kept too long, or there was no place for it in a step")
    return reading
