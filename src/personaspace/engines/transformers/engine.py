"""The default engine: any decoder-only model that `transformers` loads, on a CPU, a GPU or several."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from personaspace.engines.base import BaseEngine, check_finite, end_ids, not_finite
from personaspace.engines.chat import Chat, ReplyText, Span, Thinking, is_text
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.protocol import Conversation, Layers, ModelInfo, ReadOptions, Response, Token, Turn
from personaspace.engines.thoughts import ReplyParts, ReplySplitter, texts
from personaspace.engines.transformers.batching import NOT_FINITE, Row, computed_tokens
from personaspace.engines.transformers.cache import CacheLayout
from personaspace.engines.transformers.decode_loop import DecodeLoop, Done
from personaspace.engines.transformers.memory import (
    LEAST_TOKENS,
    free_memory,
    in_one_piece,
    is_out_of_memory,
    too_large,
)
from personaspace.engines.transformers.onset import OnsetReader
from personaspace.engines.transformers.replay import Read, Replayer, pooled
from personaspace.engines.transformers.sampling import check_bias, uniforms
from personaspace.engines.transformers.scoring import scores_of
from personaspace.model import loading
from personaspace.model.interventions import Intervention, Where
from personaspace.model.residual import (
    base_model,
    check_interventions,
    check_layers,
    input_device,
    text_config,
    text_layers,
)

ROWS_DIFFER = 0.05
"""By what share of its length a row's residual stream may differ at the first layer beside another: half precision gives under
a hundredth; a wrong place or a token of padding that is looked at, some tenths."""

log = logging.getLogger("personaspace")


class TransformersEngine(BaseEngine):
    """A loaded model that answers prompts and replays conversations, reading its residual stream.

    rows: at most that many replies in flight; memory: bytes that their KV cache may take; template: False writes
    conversations as a plain transcript, whatever template there is (a base model may carry its chat model's). thinking: whether
    the model may think before it answers, where its template knows that.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        id: str = "model",
        revision: str | None = None,
        rows: int | None = None,
        memory: int = 4 << 30,
        template: bool = True,
        thinking: Thinking = False,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.layers = text_layers(model)
        check_layers(model, self.layers)
        self.device = input_device(model)
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            # Several tokens that look back at a cache: else its keys and values are copied once for each head that shares them,
            # which takes a CPU longer than the attention itself.
            os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
        ends = end_ids(getattr(model.generation_config, "eos_token_id", None), tokenizer)
        self.chat = Chat(tokenizer, ends, template=template, thinking=thinking)
        config = text_config(model)
        cpu = self.device.type == "cpu"
        self.layout = CacheLayout.of(base_model(model), self.device, config.vocab_size)
        self.max_rows, self.memory = rows or (128 if cpu else 256), memory
        self.prefill_tokens = 1024 if cpu else 16384
        self._short_of_memory = False
        self.hidden: int = config.hidden_size
        self.info = ModelInfo(
            id=id,
            revision=revision or getattr(model.config, "_commit_hash", None),
            layers=len(self.layers),
            hidden=self.hidden,
            dtype=str(model.dtype).removeprefix("torch."),
            fingerprint=loading.fingerprint(model),
            template=self.chat.kind,
            context=loading.context_of(config),
            notes={"beginning": self.chat.beginning(), "attention": config._attn_implementation},
        )

        if self.chat.thinking_rule:
            self.info.notes["thinking"] = self.chat.thinking_rule
        if self.layout.side_by_side and self.max_rows > 1 and not self._rows_agree():
            self.layout = replace(self.layout, mixes=True)
        if not self.layout.side_by_side:
            self.info.notes["rows"] = "one at a time"
            reason = (
                "they would differ beside each other" if self.layout.mixes else "it keeps a state of its own of each"
            )
            log.warning("%s: replies are made one at a time, since %s", id, reason)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str | Mapping[str, Any] | None = None,
        dtype: str | None = None,
        adapters: Sequence[str] = (),
        **options: Any,
    ) -> TransformersEngine:
        """Loads `smollm2`, a Hub id, a folder, a GGUF file (of the Hub's: `owner/name:Q4_K_M`) or an adapter on its model, with
        further adapters on it. device: `auto` lays a model's layers over all that there are, a map from modules' names to
        devices as it says. Raises `ModelError`, `UsageError`."""
        name, placement = loading.with_adapters(name, adapters), loading.pick_device(device)
        model, tokenizer, _ = loading.load(name, placement, loading.pick_dtype(dtype, placement))
        return cls(model, tokenizer, id=name, **options)

    # -- answering -------------------------------------------------------------------------------------------------

    def _respond(self, prompts: Sequence[Prompt], sampling: Sampling, options: ReadOptions) -> Iterator[Response]:
        waiting = [self._row(k, p, p.sampling or sampling, options) for k, p in enumerate(prompts)]
        if not waiting:
            return
        # Neighbours in this order have shared prefixes; the last is taken first.
        waiting.sort(key=lambda r: r.ids, reverse=True)
        splitters: dict[int, ReplySplitter] = {}
        loop: DecodeLoop | None = None
        watch: Callable[[int, Row], None] | None = None
        while waiting or (loop and loop.rows):
            if loop is None:
                loop = self._loop(waiting, options)
                splitters = {r.key: s for r in waiting if (s := self._splitter(prompts[r.key], r)) is not None}
                for r in waiting:
                    r.answered = splitters[r.key].answered if r.key in splitters else None
                watch = self._answers_alone(loop, splitters) if options.span == "answer" and options.layers else None
            in_flight, finished = list(loop.rows), None
            try:
                # Joining costs a pass of its own, so places are filled some at a time.
                if waiting and (not loop.rows or loop.free >= min(len(waiting), max(1, loop.size // 4))):
                    joining = [waiting.pop() for _ in range(min(loop.free, len(waiting)))]
                    in_flight += joining
                    loop.join(joining)
                finished = loop.step(watch)
            except (MemoryError, RuntimeError) as e:
                if not is_out_of_memory(e):
                    raise
            if finished is None:
                # What was in flight begins anew: each token has its own random number, so that replies stay the same.
                waiting += [_fresh(row) for row in in_flight]
                waiting.sort(key=lambda r: r.ids, reverse=True)
                size, loop = loop.size, None
                self._take_less(size)
                continue
            for done in finished:
                yield self._response(prompts[done.row.key], done, options, splitters.pop(done.row.key, None))

    def _take_less(self, rows: int) -> None:
        """After memory ran out with so many rows: half of them and of a pass' tokens from now on, which is told once. Raises
        `OutOfMemory` where there is nothing to halve."""
        free_memory()
        if rows <= 1 and self.prefill_tokens <= LEAST_TOKENS:
            raise too_large(self.info.id, "one reply in flight")
        if not self._short_of_memory:
            log.warning("%s: out of memory with %d rows in flight; half as many from now on", self.info.id, rows)
        self._short_of_memory = True
        self.max_rows = max(1, min(self.max_rows, rows) // 2)
        self.prefill_tokens = max(LEAST_TOKENS, self.prefill_tokens // 2)

    def _loop(self, rows: Sequence[Row], options: ReadOptions) -> DecodeLoop:
        columns = max(len(r.ids) + r.sampling.max_new_tokens for r in rows)
        return self.open_loop(columns, options.layers, rows=len(rows), before=options.before, along=options.along)

    def open_loop(
        self,
        columns: int,
        read: Layers,
        *,
        rows: int | None = None,
        before: bool = False,
        along: Tensor | None = None,
        keep: int = 0,
    ) -> DecodeLoop:
        """A decode loop for at most `rows` rows of at most `columns` tokens each, for who joins rows by themselves. keep: bytes
        of what rows that are done leave for those that begin alike."""
        fit = self.rows_in_flight(columns)
        return DecodeLoop(
            self.model,
            self.layers,
            self.layout,
            rows=min(rows or fit, fit),
            columns=columns,
            hidden=self.hidden,
            read=self._layers(read),
            end_ids=self.chat.end_ids,
            prefill_tokens=self.prefill_tokens,
            before=before,
            along=along,
            keep=keep,
        )

    def rows_in_flight(self, columns: int) -> int:
        """How many replies are computed together where each may become `columns` tokens long, its prompt's among them: as many
        as the engine's memory has room for."""
        if not self.layout.side_by_side:
            return 1
        return max(1, min(self.max_rows, self.memory // self._bytes_per_row(columns)))

    def joining_tokens(self, prompts: Sequence[list[int]]) -> int:
        """How many tokens are computed before replies to these prompts, token ids that begin together, have their first one."""
        if not self.layout.goes_on:  # no prefix is shared, nothing padded
            return sum(len(ids) - 1 for ids in prompts)
        rows = [Row(k, ids, Sampling(), uniforms(0, 0)) for k, ids in enumerate(prompts)]
        return computed_tokens(rows, self.prefill_tokens)

    def _row(self, key: int, prompt: Prompt, sampling: Sampling, options: ReadOptions) -> Row:
        ids = self.chat.prompt_ids(prompt.messages)
        check_bias(sampling, self.model.get_input_embeddings().num_embeddings)
        applied = options.interventions_of(prompt)
        return Row(key, ids, sampling, uniforms(prompt.seed or 0, sampling.max_new_tokens), applied)

    def _splitter(self, prompt: Prompt, row: Row) -> ReplySplitter | None:
        """Who tells a row's thoughts from its answer; a text that is gone on with has none."""
        return None if is_text(prompt.messages) else self.chat.splitter(row.ids)

    @staticmethod
    def _answers_alone(loop: DecodeLoop, splitters: Mapping[int, ReplySplitter]) -> Callable[[int, Row], None] | None:
        """Has a loop forget what it has read of a reply each time its answer begins."""
        if not splitters:
            return None

        def watch(k: int, row: Row) -> None:
            # The newest token is drawn, and read in the next step.
            tokens_read = len(row.out) - (not row.finish)
            if (splitter := splitters.get(row.key)) and splitter.follow(row.out).answer[0] == tokens_read > 0:
                for means in loop.read_means:
                    means.clear(slice(k, k + 1))
                row.touched = 0

        return watch

    def _response(
        self, prompt: Prompt, done: Done, options: ReadOptions, splitter: ReplySplitter | None = None
    ) -> Response:
        row, mean, norms, touched = done.row, done.mean, done.norms, done.row.touched
        if mean is not None:
            check_finite(mean, options.layers, prompt)
        if row.finish == NOT_FINITE:
            raise not_finite("the logits", prompt)
        everything = (0, len(row.out))
        parts = splitter.follow(row.out) if splitter else ReplyParts(everything)
        text, thinking = texts(self.chat.decode, row.out, parts)
        ranges = {"answer": (parts.answer,), "thinking": parts.thinking, "all": (everything,)}[options.span]
        start, end = (ranges[0][0], ranges[-1][1]) if ranges else (0, 0)
        # The loop has read an answer up to the reply's end, or all of it; what is neither is read once more.
        is_read = options.span == "all" or (options.span == "answer" and end == len(row.out))
        if mean is not None and splitter and row.out and not is_read:
            again = self._read_again(prompt, row, ranges, parts.answer[0], options)
            mean, norms, touched = again.activation, again.norms, again.touched
        projections = torch.stack(row.projections[start:end]) if row.projections[start:end] else None
        ids = tuple(row.out)
        response = Response(prompt, text, ids, row.finish, mean, norms, done.before, touched, projections, thinking)
        return replace(response, answer=parts.answer, read=(start, end)) if splitter else response

    def _read_again(
        self, prompt: Prompt, row: Row, ranges: Sequence[tuple[int, int]], answer_start: int, options: ReadOptions
    ) -> Read:
        """The mean over ranges of a reply's tokens, intervened in as they were when it was made."""
        edges = sorted({0, len(row.out), *(place for stretch in ranges for place in stretch)})
        stretches = [*pairwise(edges)]
        start, applied = len(row.ids), options.interventions_of(prompt)
        span = Span((*row.ids, *row.out), tuple((start + a, start + b) for a, b in stretches))
        begins: dict[Where, int] = {"generated": start, "answer": start + answer_start}
        with in_one_piece(self.info.id, f"a reply of {len(row.out):,} tokens"):
            replayer = Replayer(self.model, self.layers, options.layers, self.hidden, applied, begins=begins)
            (reads,) = replayer.batch([span])
        return pooled([read for read, stretch in zip(reads, stretches, strict=True) if stretch in ranges], reads[0])

    def _stream(self, prompt: Prompt, sampling: Sampling, options: ReadOptions) -> Iterator[Token]:
        row = self._row(0, prompt, sampling, options)
        reply = ReplyText(self.chat.decode, self._splitter(prompt, row))
        row.answered = reply.splitter.answered if reply.splitter else None
        touched, work = 0, f"a reply of up to {sampling.max_new_tokens:,} tokens to {len(row.ids):,}"
        with in_one_piece(self.info.id, work):
            loop = self._loop([row], options)
            loop.join([row])
        while not row.finish:
            fed, thought = len(row.out), len(reply.thinking)
            with in_one_piece(self.info.id, work):
                loop.step()
            activation = loop.means.last[:, 0].cpu().clone() if fed and options.layers else None
            new = row.out[-1] if len(row.out) > fed else None
            if row.finish == NOT_FINITE or (activation is not None and not torch.isfinite(activation).all()):
                raise not_finite("the residual stream or the logits", prompt)
            text = reply.add(row.out, final=bool(row.finish))
            was_touched, touched = row.touched > touched, row.touched
            is_answer = reply.splitter is None or fed > reply.splitter.parts.answer[0]
            thinking = reply.thinking[thought:]
            yield Token(fed, new, text, activation, was_touched, row.finish, thinking, is_answer)

    def _rows_agree(self) -> bool:
        """Whether rows of unequal length get beside each other what each gets alone: not every model heeds a token's place and
        what is masked. Told at the first layer, where neither rounding nor a router's close call has grown yet."""
        sampling = Sampling(temperature=0, max_new_tokens=2)
        rows = [Row(k, [*range(4, 4 + n)], sampling, uniforms(0, 2), end_ids=frozenset()) for k, n in enumerate((3, 7))]
        reads: list[dict[int, Tensor]] = []
        for groups in ([rows], [[row] for row in rows]):
            reads.append({})
            for group in groups:
                loop = self.open_loop(16, (0,), rows=len(group))
                loop.join([replace(row, out=[], finish="") for row in group])
                while loop.rows:
                    reads[-1] |= {d.row.key: d.mean[0] for d in loop.step() if d.mean is not None}
        together, alone = reads
        return all((together[k] - alone[k]).norm() <= ROWS_DIFFER * alone[k].norm() for k in alone)

    def columns_that_fit(self, rows: int) -> int:
        """How long so many rows may become within the engine's memory."""
        return max(1, (self.memory // rows - self.layout.per_row) // max(1, self.layout.per_token))

    def _bytes_per_row(self, columns: int) -> int:
        return max(1, columns * self.layout.per_token + self.layout.per_row)

    def score(
        self, ids: Sequence[int], top: int, interventions: Sequence[Intervention] = ()
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """How probable a text's tokens are, from the second one on: each one's log-probability, and the `top` most probable
        tokens in its place with theirs. Raises `OutOfMemory`."""
        check_interventions(interventions, len(self.layers), self.hidden)
        with in_one_piece(self.info.id, f"a text of {len(ids):,} tokens"):
            return scores_of(self.model, self.layers, self.layout, ids, top, interventions)

    def _onsets(self, ids: Sequence[list[int]], options: ReadOptions) -> Iterator[tuple[int, Tensor]]:
        unread = list(range(len(ids)))
        while unread:
            base, tokens = base_model(self.model), self.prefill_tokens
            reader = OnsetReader(
                base, self.device, self.layers, self.layout, options.layers, tokens, options.interventions
            )
            done: set[int] = set()
            try:
                for place, stream in reader.onsets([ids[k] for k in unread]):
                    done.add(unread[place])
                    yield unread[place], stream
            except (MemoryError, RuntimeError) as e:
                if not is_out_of_memory(e):
                    raise
            unread = [k for k in unread if k not in done]
            if unread:
                self._take_less(1 if tokens <= LEAST_TOKENS else self.max_rows)

    def _replay(self, conversations: Sequence[Conversation], options: ReadOptions) -> Iterator[list[Turn]]:
        replayer = Replayer(
            self.model,
            self.layers,
            options.layers,
            self.hidden,
            options.interventions,
            options.each,
            options.logprobs,
        )
        spans, places = self._spans(conversations, options.span)
        results: dict[int, list[Turn]] = {}
        while unread := [k for k in range(len(spans)) if k not in results]:
            tokens = self.prefill_tokens
            try:
                for batch, reads_of_batch in replayer.batches([spans[k] for k in unread], tokens):
                    for place, reads in zip(batch, reads_of_batch, strict=True):
                        k = unread[place]
                        results[k] = [Turn(i, **vars(r)) for i, r in zip(places[k], reads, strict=True)]
            except (MemoryError, RuntimeError) as e:
                if not is_out_of_memory(e):
                    raise
            if unread_tokens := [len(spans[k].token_ids) for k in unread if k not in results]:
                free_memory()
                if tokens < 2 * max(unread_tokens):  # it was alone in its pass
                    raise too_large(self.info.id, f"a conversation of {max(unread_tokens):,} tokens")
                self._take_less(self.max_rows)
        for k in range(len(spans)):
            yield results[k]


def _fresh(row: Row) -> Row:
    """A row before its first token."""
    return replace(row, touched=0, logs=[], out=[], length=0, finish="", end=None, projections=[])
