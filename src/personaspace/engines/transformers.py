"""The default engine: any decoder-only model that `transformers` loads, on a CPU or one GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from personaspace.engines import Conversation, Layers, ModelInfo, Response, Span, Turn, loading
from personaspace.engines.chat import Chat
from personaspace.engines.decode import DecodeLoop, Row
from personaspace.engines.sampling import uniforms
from personaspace.errors import ActivationError, UsageError
from personaspace.prompts import Prompt, Sampling
from personaspace.residual import SpanMeans, check_layers, find_layers, reading, text_config


class TransformersEngine:
    """A loaded model that answers prompts and replays conversations, reading its residual stream.

    rows: at most that many replies in flight; memory: bytes that their keys and values may take.
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
    ) -> None:
        self.network, self.tokenizer = model, tokenizer
        self.layers = find_layers(model)
        check_layers(model, self.layers)
        self.device: torch.device = next(model.parameters()).device
        self.chat = Chat(tokenizer, _end_ids(model, tokenizer))
        cpu = self.device.type == "cpu"
        self.max_rows, self.memory = rows or (128 if cpu else 256), memory
        self.prefill_tokens = 1024 if cpu else 16384
        config = text_config(model)
        self.hidden: int = config.hidden_size
        self.model = ModelInfo(
            id=id,
            revision=revision or getattr(model.config, "_commit_hash", None),
            layers=len(self.layers),
            hidden=self.hidden,
            dtype=str(model.dtype).removeprefix("torch."),
            fingerprint=loading.fingerprint(model),
            template=self.chat.kind,
            notes={"beginning": self.chat.beginning(), "attention": config._attn_implementation},
        )

    @classmethod
    def load(
        cls, name: str, *, device: str | None = None, dtype: str | None = None, **options: Any
    ) -> TransformersEngine:
        """Loads `smollm2`, a Hub id, a folder or a GGUF file. Raises `ModelError`."""
        where = loading.pick_device(device)
        model, tokenizer, _ = loading.load(name, where, loading.pick_dtype(dtype, where))
        return cls(model, tokenizer, id=name, **options)

    # -- answering -------------------------------------------------------------------------------------------------

    def respond(
        self, prompts: Iterable[Prompt], sampling: Sampling, *, read: Layers | None = None
    ) -> Iterator[Response]:
        """See `Engine.respond`. Raises `ActivationError` where NaN or Inf is read, naming layer and response."""
        asked = list(prompts)
        if not asked:
            return
        waiting = [self._row(k, p, sampling) for k, p in enumerate(asked)]
        columns = max(len(r.ids) + r.sampling.max_new_tokens for r in waiting)
        # Neighbours in this order share their beginnings; the last is taken first.
        waiting.sort(key=lambda r: r.ids, reverse=True)
        layers = self._layers(read)
        loop = DecodeLoop(
            self.network,
            self.layers,
            rows=min(len(waiting), self._rows_that_fit(columns)),
            columns=columns,
            hidden=self.hidden,
            read=layers,
            end_ids=self.chat.end_ids,
            prefill_tokens=self.prefill_tokens,
        )
        with loop.running():
            while waiting or loop.rows:
                # Joining costs a pass of its own, so places are filled some at a time.
                if waiting and (not loop.rows or loop.free >= min(len(waiting), max(1, loop.size // 4))):
                    loop.join([waiting.pop() for _ in range(min(loop.free, len(waiting)))])
                for row, mean, norms in loop.step():
                    yield self._response(asked[row.key], row, mean, norms, layers)

    def _row(self, key: int, prompt: Prompt, sampling: Sampling) -> Row:
        own = prompt.sampling or sampling
        return Row(key, self.chat.prompt_ids(prompt.messages), own, uniforms(prompt.seed or 0, own.max_new_tokens))

    def _response(
        self, prompt: Prompt, row: Row, mean: Tensor | None, norms: Tensor | None, layers: Sequence[int]
    ) -> Response:
        if mean is not None and not torch.isfinite(mean).all():
            bad = layers[int((~torch.isfinite(mean)).any(-1).nonzero()[0])]
            raise ActivationError(
                f"NaN or Inf in layer {bad} of the response of {prompt.role or 'the model'} to question {prompt.question} "
                f"(instruction {prompt.instruction}); try --dtype fp32"
            )
        return Response(prompt, self.chat.decode(row.out), tuple(row.out), row.finish, mean, norms)

    def _rows_that_fit(self, columns: int) -> int:
        config = text_config(self.network)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row = int(2 * len(self.layers) * heads * size * columns * self.network.dtype.itemsize)
        return max(1, min(self.max_rows, self.memory // row))

    def _layers(self, read: Layers | None) -> tuple[int, ...]:
        layers = tuple(read or ())
        if any(not 0 <= layer < len(self.layers) for layer in layers):
            raise UsageError(f"layers {list(layers)}: the model has layers 0 to {len(self.layers) - 1}")
        return layers

    # -- replaying -------------------------------------------------------------------------------------------------

    def replay(self, conversations: Sequence[Conversation], *, read: Layers) -> Iterator[list[Turn]]:
        """See `Engine.replay`. A `Span` is read as it stands; messages are rendered and tokenised once."""
        layers = self._layers(read)
        spans, places = [], []
        for c in conversations:
            span, at = (c, list(range(len(c.spans)))) if isinstance(c, Span) else self.chat.spans(c)
            spans.append(span)
            places.append(at)
        results: dict[int, list[Turn]] = {}
        order = sorted(range(len(spans)), key=lambda k: len(spans[k].token_ids))
        while order:
            longest = len(spans[order[-1]].token_ids)
            fit = max(1, self.prefill_tokens // max(1, longest))
            batch, order = order[-fit:], order[:-fit]
            for k, turns in zip(batch, self._replay([spans[k] for k in batch], layers), strict=True):
                results[k] = [Turn(i, *t) for i, t in zip(places[k], turns, strict=True)]
        for k in range(len(spans)):
            yield results[k]

    def _replay(self, batch: Sequence[Span], layers: Sequence[int]) -> list[list[tuple[int, Tensor, Tensor]]]:
        longest = max(len(s.token_ids) for s in batch)
        ids = torch.tensor([[*s.token_ids, *[0] * (longest - len(s.token_ids))] for s in batch], device=self.device)
        ranges = [(row, a, b) for row, s in enumerate(batch) for a, b in s.spans]
        weights = torch.zeros(len(ranges), longest, device=self.device)
        for k, (_, a, b) in enumerate(ranges):
            weights[k, a:b] = 1 / max(1, b - a)
        rows = torch.tensor([row for row, _, _ in ranges], dtype=torch.long, device=self.device)
        sink = SpanMeans(weights, rows, len(layers), self.hidden)
        with torch.inference_mode(), reading(self.layers, layers, sink):
            self.network.base_model(input_ids=ids, use_cache=False)
        turns: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in batch]
        for k, (row, a, b) in enumerate(ranges):
            turns[row].append((b - a, sink.means[k].cpu(), sink.norms[k].cpu()))
        return turns


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a reply, from the generation settings and the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
