"""The default engine: any decoder-only model that `transformers` loads, on a CPU or one GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from personaspace.engines.base import BaseEngine, check_finite, end_ids, not_finite
from personaspace.engines.chat import Chat, ReplyText
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.protocol import Conversation, Layers, ModelInfo, ReadOptions, Response, Token, Turn
from personaspace.engines.transformers.batching import NOT_FINITE, Row, computed_tokens
from personaspace.engines.transformers.decode_loop import DecodeLoop, Done
from personaspace.engines.transformers.onset import OnsetReader
from personaspace.engines.transformers.replay import Replayer
from personaspace.engines.transformers.sampling import uniforms
from personaspace.model import loading
from personaspace.model.interventions import Intervention
from personaspace.model.residual import Intervening, check_interventions, check_layers, find_layers, text_config

SCORED_TOKENS = 256


class TransformersEngine(BaseEngine):
    """A loaded model that answers prompts and replays conversations, reading its residual stream.

    rows: at most that many replies in flight; memory: bytes that their KV cache may take; template: False writes
    conversations as a plain transcript, whatever template there is (a base model may carry its chat model's).
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
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.layers = find_layers(model)
        check_layers(model, self.layers)
        self.device: torch.device = next(model.parameters()).device
        self.chat = Chat(
            tokenizer, end_ids(getattr(model.generation_config, "eos_token_id", None), tokenizer), template=template
        )
        cpu = self.device.type == "cpu"
        self.max_rows, self.memory = rows or (128 if cpu else 256), memory
        self.prefill_tokens = 1024 if cpu else 16384
        config = text_config(model)
        self.hidden: int = config.hidden_size
        self.info = ModelInfo(
            id=id,
            revision=revision or getattr(model.config, "_commit_hash", None),
            layers=len(self.layers),
            hidden=self.hidden,
            dtype=str(model.dtype).removeprefix("torch."),
            fingerprint=loading.fingerprint(model),
            template=self.chat.kind,
            context=getattr(config, "max_position_embeddings", None),
            notes={"beginning": self.chat.beginning(), "attention": config._attn_implementation},
        )

    @classmethod
    def load(
        cls, name: str, *, device: str | None = None, dtype: str | None = None, **options: Any
    ) -> TransformersEngine:
        """Loads `smollm2`, a Hub id, a folder or a GGUF file. Raises `ModelError`."""
        device_name = loading.pick_device(device)
        model, tokenizer, _ = loading.load(name, device_name, loading.pick_dtype(dtype, device_name))
        return cls(model, tokenizer, id=name, **options)

    # -- answering -------------------------------------------------------------------------------------------------

    def _respond(self, prompts: Sequence[Prompt], sampling: Sampling, options: ReadOptions) -> Iterator[Response]:
        waiting = [self._row(k, p, p.sampling or sampling, options) for k, p in enumerate(prompts)]
        if not waiting:
            return
        # Neighbours in this order have shared prefixes; the last is taken first.
        waiting.sort(key=lambda r: r.ids, reverse=True)
        loop = self._loop(waiting, options)
        while waiting or loop.rows:
            # Joining costs a pass of its own, so places are filled some at a time.
            if waiting and (not loop.rows or loop.free >= min(len(waiting), max(1, loop.size // 4))):
                loop.join([waiting.pop() for _ in range(min(loop.free, len(waiting)))])
            for done in loop.step():
                yield self._response(prompts[done.row.key], done, options.layers)

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
    ) -> DecodeLoop:
        """A decode loop for at most `rows` rows of at most `columns` tokens each, for who joins rows by themselves."""
        fit = self.rows_in_flight(columns)
        return DecodeLoop(
            self.model,
            self.layers,
            rows=min(rows or fit, fit),
            columns=columns,
            hidden=self.hidden,
            read=self._layers(read),
            end_ids=self.chat.end_ids,
            prefill_tokens=self.prefill_tokens,
            before=before,
            along=along,
        )

    def rows_in_flight(self, columns: int) -> int:
        """How many replies are computed together where each may become `columns` tokens long, its prompt's among them: as many
        as the engine's memory has room for."""
        return max(1, min(self.max_rows, self.memory // (columns * self._bytes_per_token())))

    def joining_tokens(self, prompts: Sequence[list[int]]) -> int:
        """How many tokens are computed before replies to these prompts, token ids that begin together, have their first one."""
        rows = [Row(k, ids, Sampling(), uniforms(0, 0)) for k, ids in enumerate(prompts)]
        return computed_tokens(rows, self.prefill_tokens)

    def _row(self, key: int, prompt: Prompt, sampling: Sampling, options: ReadOptions) -> Row:
        ids = self.chat.prompt_ids(prompt.messages)
        applied = (*self._ambient, *options.interventions_of(prompt))
        return Row(key, ids, sampling, uniforms(prompt.seed or 0, sampling.max_new_tokens), applied)

    def _response(self, prompt: Prompt, done: Done, layers: Sequence[int]) -> Response:
        row, mean = done.row, done.mean
        if mean is not None:
            check_finite(mean, layers, prompt)
        if row.finish == NOT_FINITE:
            raise not_finite("the logits", prompt)
        text = self.chat.decode(row.out)
        projections = torch.stack(row.projections) if row.projections else None
        return Response(
            prompt, text, tuple(row.out), row.finish, mean, done.norms, done.before, row.touched, projections
        )

    def _stream(self, prompt: Prompt, sampling: Sampling, options: ReadOptions) -> Iterator[Token]:
        row = self._row(0, prompt, sampling, options)
        loop = self._loop([row], options)
        reply, touched = ReplyText(self.chat.decode), 0
        loop.join([row])
        while not row.finish:
            fed = len(row.out)
            loop.step()
            activation = loop.means.last[:, 0].cpu().clone() if fed and options.layers else None
            new = row.out[-1] if len(row.out) > fed else None
            if row.finish == NOT_FINITE or (activation is not None and not torch.isfinite(activation).all()):
                raise not_finite("the residual stream or the logits", prompt)
            text = reply.add(row.out, final=bool(row.finish))
            yield Token(fed, new, text, activation, row.touched > touched, row.finish)
            touched = row.touched

    def columns_that_fit(self, rows: int) -> int:
        """How long so many rows may become within the engine's memory."""
        return max(1, self.memory // (rows * self._bytes_per_token()))

    def _bytes_per_token(self) -> int:
        """What a token takes in the KV cache."""
        config = text_config(self.model)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * len(self.layers) * heads * size * self.model.dtype.itemsize)

    def score(
        self, ids: Sequence[int], top: int, interventions: Sequence[Intervention] = ()
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """How probable a text's tokens are, from the second one on: each one's log-probability, and the `top` most probable
        tokens in its place with theirs."""
        check_interventions(interventions, len(self.layers), self.hidden)
        applied = Intervening()
        applied.groups = [(None, tuple(i for i in interventions if i.where == "all"))]
        cache, scores = DynamicCache(), []
        with torch.inference_mode(), applied.on(self.layers):
            # Some tokens at a time: the vocabulary's logits of a long text would not fit.
            for k in range(0, len(ids) - 1, SCORED_TOKENS):
                fed = torch.tensor([ids[k : min(k + SCORED_TOKENS, len(ids) - 1)]], device=self.device)
                logits = self.model(input_ids=fed, past_key_values=cache, use_cache=True).logits
                scores.extend(_logprobs(logits[0], ids[k + 1 :], top))
        return scores

    def _onsets(self, ids: Sequence[list[int]], options: ReadOptions) -> Iterator[tuple[int, Tensor]]:
        applied = (*(i for i in self._ambient if i.where == "all"), *options.interventions)
        return OnsetReader(self.model, self.layers, options.layers, self.prefill_tokens, applied).onsets(ids)

    def _replay(self, conversations: Sequence[Conversation], options: ReadOptions) -> Iterator[list[Turn]]:
        applied = (*self._ambient, *options.interventions)
        replayer = Replayer(
            self.model, self.layers, options.layers, self.hidden, applied, options.each, options.logprobs
        )
        spans, places = self._spans(conversations)
        results: dict[int, list[Turn]] = {}
        for batch, reads_of_batch in replayer.batches(spans, self.prefill_tokens):
            for k, reads in zip(batch, reads_of_batch, strict=True):
                results[k] = [Turn(i, **vars(r)) for i, r in zip(places[k], reads, strict=True)]
        for k in range(len(spans)):
            yield results[k]


def _logprobs(logits: Tensor, ids: Sequence[int], top: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """Of the token after each place, and of the `top` most probable ones there. logits: `[tokens, vocabulary]`."""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(top)
    scored = torch.tensor(list(ids[: len(logprobs)]), device=logprobs.device)
    token_logprobs = logprobs.gather(1, scored[:, None])[:, 0].tolist()
    pairs = [list(zip(i, v, strict=True)) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return list(zip(token_logprobs, pairs, strict=True))
