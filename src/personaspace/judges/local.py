"""A model in this process as a judge: the score is read from its next token's probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from personaspace.errors import JudgeError
from personaspace.judges.rules import ADHERENCE
from personaspace.judges.score import Item, Judge, Rubric, Score


class LocalJudge:
    """A loaded model reads reply and rubric; the score is read from the probabilities of the next token, 0 to the top. It does
    not think, whatever the engine does. Raises `JudgeError` for a model that always does."""

    def __init__(self, engine: Any, rubric: Rubric = ADHERENCE) -> None:
        self.engine, self.rubric = engine, rubric
        self.name = f"local-{engine.info.fingerprint[:8]}"
        tokenize, scores = engine.tokenizer, [str(d) for d in range(rubric.top + 1)]
        self.digits = [tokenize(d, add_special_tokens=False)["input_ids"][-1] for d in scores]
        if len(set(self.digits)) != len(scores):
            raise JudgeError(f"the judging model's tokenizer has no token of its own for each of {', '.join(scores)}")
        splitter = engine.chat.splitter(self._prompt_ids("?"))
        if splitter is not None and not splitter.is_open:
            raise JudgeError(
                f"--judge local: {engine.info.id} thinks before every answer, so that its next token is no score; "
                "choose --judge rules or openai"
            )

    def _prompt_ids(self, text: str) -> list[int]:
        return list(self.engine.chat.prompt_ids([{"role": "user", "content": text}], thinking=False))

    def rubric_of(self, item: Any) -> str:
        """A digest of what this judge goes by for an item."""
        return self.rubric.digest(item)

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        for item in items:
            ids = self._prompt_ids(self.rubric.text(item))
            with torch.inference_mode():
                tokens = torch.tensor([ids], device=self.engine.device)
                logits = self.engine.model(tokens, use_cache=False, logits_to_keep=1).logits
            of_digits = logits[0, -1, self.digits].float()
            if not bool(of_digits.isfinite().all()):
                yield Score(None, problem="the judging model's numbers are not finite")
                continue
            p = of_digits.softmax(-1)
            yield Score(int(p.argmax()), float((p * torch.arange(len(p), device=p.device)).sum()))


def local_judge(*, engine: Any, rubric: Rubric, **_: Any) -> Judge:
    """The registry's `local`."""
    return LocalJudge(engine, rubric)
