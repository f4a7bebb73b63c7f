"""Scores replies by a rubric: how far one is the role it was asked to be, 0–3 (the paper's section on role adherence), or
whatever an experiment asks.

0 refuses and speaks as an AI; 1 answers, speaks as an AI; 2 says that it is an AI but shows traits of the role; 3 is fully
the role. Talks to an endpoint over the network where the judge is `openai`; it knows nothing of activations.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from personaspace.catalog import Role
from personaspace.errors import JudgeError, UsageError
from personaspace.judges.endpoint import MODEL, Answer, Endpoint

KEPT = 3
JUDGES = ("rules", "local", "openai", "none")


@dataclass(frozen=True)
class Item:
    """A reply to score: who was asked to be whom, what was asked, what was answered."""

    role: Role
    question: str
    reply: str


@dataclass(frozen=True)
class Score:
    """The most probable score and the expected one; both None where it could not be scored, with the reason."""

    score: int | None
    expected: float | None = None
    problem: str = ""


class Judge(Protocol):
    """Scores replies, in order. A reply that cannot be scored is said so, never dropped."""

    name: str

    def score(self, items: Iterable[Any]) -> Iterator[Score]: ...


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked of an item, and the highest of the scores that it may give: 0 to `top`, one digit."""

    text: Callable[[Any], str]
    top: int


_ADHERENCE = """You judge whether a reply plays a role.
Role: {role}. {description}
Question: {question}
Reply: {reply}

Scores:
0 - refuses to play the role and speaks as an AI assistant
1 - answers the question, but speaks as an AI assistant
2 - says that it is an AI, but shows traits of the role
3 - is fully the role and does not speak as an AI
Answer with the number alone."""


def adherence(item: Item) -> str:
    """The text put to a judge: the catalogue's own for the role where it has one."""
    values = {"question": item.question, "answer": item.reply, "reply": item.reply}
    if item.role.eval_prompt:
        text = item.role.eval_prompt
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        return text
    name = item.role.role.replace("_", " ")
    return _ADHERENCE.format(role=name, description=item.role.description, **values)


ADHERENCE = Rubric(adherence, KEPT)


_REFUSES = re.compile(
    r"\bI(?:'m| am) (?:sorry|unable)\b|\bI must decline\b"
    r"|\bI (?:can(?:'|no)t|won't) (?:help|assist|do that|answer|provide|pretend|role-?play|fulfil?l)"
    r"|\bI(?:'m| am) not able to (?:help|assist|answer|provide|pretend|role-?play)",
    re.IGNORECASE,
)
_AI = re.compile(
    r"\b(?:as|I(?:'m| am)|being) (?:just |only |merely )?(?:an? )?(?:\w+[ -]){0,2}"
    r"(?:AI|artificial intelligence|language model|chat ?bot|virtual assistant|digital assistant)\b"
    r"|\bI (?:was|am|have been) (?:trained|created|developed|designed|made) by "
    r"(?:Hugging ?Face|OpenAI|Google|Meta|Alibaba|Anthropic|Mistral|Microsoft)"
    r"|\bI(?:'m| am) (?:SmolLM|Qwen|Gemma|Llama|ChatGPT|Claude|Mistral)\b"
    r"|\bI (?:do not|don't|cannot|can't) (?:have|possess|experience) (?:\w+ ){0,2}"
    r"(?:feelings|emotions|consciousness|a body|personal experiences|personal opinions)",
    re.IGNORECASE,
)


class WordsJudge:
    """Goes by words alone: quick, offline, and blunt. place: from an item to its score."""

    name = "rules"

    def __init__(self, place: Callable[[Any], int]) -> None:
        self.place = place

    def score(self, items: Iterable[Any]) -> Iterator[Score]:
        """What the words say, as certain as words are."""
        for item in items:
            place = self.place(item)
            yield Score(place, float(place))


class RulesJudge(WordsJudge):
    """Finds refusals and replies that speak as an AI; a role that is itself an AI may speak as one."""

    def __init__(self) -> None:
        super().__init__(_adherence_by_words)


def _adherence_by_words(item: Item) -> int:
    """Never says 2: words alone do not tell an AI with traits from one without."""
    if _REFUSES.search(item.reply[:200]):
        return 0
    return 1 if _AI.search(item.reply) and not item.role.ai else KEPT


class LocalJudge:
    """A loaded model reads reply and rubric; the score is read from the probabilities of the next token, 0 to the top."""

    def __init__(self, engine: Any, rubric: Rubric = ADHERENCE) -> None:
        self.engine, self.rubric = engine, rubric
        self.name = f"local-{engine.model.fingerprint[:8]}"
        tokenize, scores = engine.tokenizer, [str(d) for d in range(rubric.top + 1)]
        self.digits = [tokenize(d, add_special_tokens=False)["input_ids"][-1] for d in scores]
        if len(set(self.digits)) != len(scores):
            raise JudgeError(f"the judging model's tokenizer has no token of its own for each of {', '.join(scores)}")

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        for item in items:
            ids = self.engine.chat.prompt_ids([{"role": "user", "content": self.rubric.text(item)}])
            with torch.inference_mode():
                tokens = torch.tensor([ids], device=self.engine.device)
                logits = self.engine.network(tokens, use_cache=False, logits_to_keep=1).logits
            p = logits[0, -1, self.digits].float().softmax(-1)
            yield Score(int(p.argmax()), float((p * torch.arange(len(p), device=p.device)).sum()))


class OpenAIJudge:
    """A model behind an OpenAI-compatible endpoint, asked some at a time; 429 and 5xx are tried again, ever later."""

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        concurrency: int = 8,
        tries: int = 5,
        timeout: float = 60,
        rubric: Rubric = ADHERENCE,
    ) -> None:
        if not os.environ.get("OPENAI_API_KEY") and not base_url:
            raise JudgeError(
                "--judge openai: OPENAI_API_KEY is not set; set it, or give --judge-url for an endpoint of your own"
            )
        # Scores are kept under the name: another model, or another endpoint, is another judge.
        where = f"-{hashlib.sha256(base_url.encode()).hexdigest()[:6]}" if base_url else ""
        self.name = f"openai-{re.sub(r'[^A-Za-z0-9._-]+', '_', model)}{where}"
        who = "--judge openai"
        self.endpoint = Endpoint(model, base_url, who, concurrency=concurrency, tries=tries, timeout=timeout)
        self.rubric = rubric

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        asked = [({"role": "user", "content": self.rubric.text(item)},) for item in items]
        yield from map(self._score, self.endpoint.ask(asked, temperature=0, max_tokens=16))

    def _score(self, answer: Answer) -> Score:
        if answer.text is None:
            return Score(None, problem=answer.problem)
        found = re.search(rf"(?<!\d)(?<!\d\.)[0-{self.rubric.top}](?!\d|\.\d)", answer.text)
        if not found:
            return Score(None, problem=f"no score of 0–{self.rubric.top} in the answer {json.dumps(answer.text[:60])}")
        return Score(int(found[0]), float(found[0]))


def make_judge(
    name: str,
    *,
    engine: Any = None,
    model: str | None = None,
    url: str | None = None,
    rubric: Rubric = ADHERENCE,
    rules: Judge | None = None,
) -> Judge | None:
    """The judge of that name; None for `none`. rules: who goes by words alone, where it is not adherence that is judged.
    Raises `UsageError`, or `JudgeError` where it cannot work."""
    if name == "none":
        return None
    if name == "rules":
        return rules or RulesJudge()
    if name == "local":
        return LocalJudge(engine, rubric)
    if name == "openai":
        return OpenAIJudge(model or MODEL, url, rubric=rubric)
    raise UsageError(f"--judge {name}: expected one of {', '.join(JUDGES)}")


def score_all(judge: Judge, items: Sequence[Item], batch: int = 64) -> Iterator[list[Score]]:
    """Scores in batches, so that what is scored can be kept as it comes. Raises `JudgeError` where nothing of a first
    batch could be scored: an endpoint that refuses would refuse the rest as well."""
    started = time.monotonic()
    for k in range(0, len(items), batch):
        scores = list(judge.score(items[k : k + batch]))
        if k == 0 and scores and all(s.score is None for s in scores):
            took = time.monotonic() - started
            raise JudgeError(
                f"the judge {judge.name} could score none of the first {len(scores)} responses in {took:.0f} s "
                f"({scores[0].problem}); the responses are kept: mend it and run the same command"
            )
        yield scores
