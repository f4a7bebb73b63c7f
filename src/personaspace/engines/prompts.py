"""Decides who is asked what: a catalogue and a design become prompts; it knows nothing of models or templates."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from personaspace.catalog import DEFAULT, Catalog
from personaspace.errors import UsageError
from personaspace.model.interventions import Intervention

Message = Mapping[str, Any]
"""`role` and `content`, a text; an assistant's may have `tool_calls` in OpenAI's shape, and a `tool`'s the call's id."""


class Sampling(BaseModel):
    """How replies are drawn: the study's values unless given. Temperature 0 takes the most probable token.

    top_k: only so many of the most probable tokens, 0 for all; min_p: only tokens that are at least that share of the most
    probable one's probability. frequency_penalty, presence_penalty: taken off a token's logit for each time that the reply has
    it, and once where it has it; repetition_penalty: what the logits of prompt's and reply's tokens are divided by (or, where
    negative, multiplied by); logit_bias: pairs of a token's id and what is added to its logit. As they are given here, these
    change nothing, and what a run or a file tells of a sampling leaves them out then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    max_new_tokens: int = Field(512, ge=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    frequency_penalty: float = Field(0.0, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is drawn, by more than temperature and top_p."""
        return any(getattr(self, name) != neutral for name, neutral in NEUTRAL_SAMPLING.items())

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Runs and asked replies are known by these fields: those that came later must not make them others.
        neutral = {k for k, v in NEUTRAL_SAMPLING.items() if getattr(self, k) == v}
        return {k: v for k, v in serialize(self).items() if k not in neutral}


NEUTRAL_SAMPLING: dict[str, Any] = {
    "top_k": 0,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": (),
}
"""Fields of a sampling that change logits, and the values with which they do not."""


@dataclass(frozen=True)
class Prompt:
    """Messages to answer, and where they come from: indices into the catalogue; `index` counts a role's prompts.

    sampling, interventions: the prompt's own, in place of those that `respond` is given.
    """

    messages: tuple[Message, ...]
    role: str = ""
    instruction: int = 0
    question: int = 0
    index: int = 0
    sampling: Sampling | None = None
    seed: int | None = None
    interventions: tuple[Intervention, ...] | None = None


ROLES_A_QUESTION = 10
"""Of how many roles a question is asked, at least: what is taken off as its effect is then mostly its own."""


class Design(BaseModel):
    """Who is asked how much.

    per_role: responses a role, questions and instructions in rotation.
    default_responses: responses of the default, over all questions; None is half of the roles' total.
    complete: every role is asked every question under every instruction, as published.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    per_role: int = Field(4, ge=1)
    default_responses: int | None = Field(None, ge=2)
    complete: bool = False

    def first_round(self, catalog: Catalog) -> dict[str, int]:
        """Role → responses, the default among them, of the round that every map begins with."""
        q = len(catalog.questions)
        if self.complete:
            counts = {r.role: len(r.instructions) * q for r in catalog.roles}
            return {DEFAULT: self.default_responses or len(catalog.defaults) * q, **counts}
        total = self.per_role * len(catalog.roles)
        return {DEFAULT: self.default_responses or max(2, (total + 1) // 2)} | dict.fromkeys(
            (r.role for r in catalog.roles), self.per_role
        )

    def questions(self, catalog: Catalog) -> int:
        """How many of a catalogue's questions this design bears: each is asked of about ten roles or more, and no role is
        asked one again while others are left (the method's "Three reliabilities")."""
        available = len(catalog.questions)
        borne = self.per_role * len(catalog.roles) // ROLES_A_QUESTION
        return available if self.complete else min(available, max(2, self.per_role, borne))

    def sparseness(self, catalog: Catalog) -> str | None:
        """A sentence where there are more questions than that."""
        questions, borne = len(catalog.questions), self.questions(catalog)
        if questions <= borne:
            return None
        each = self.per_role * len(catalog.roles) / questions
        return (
            f"{questions} questions are asked of {each:.1f} roles each; with {borne} of them (questions={borne}), each is "
            f"asked of {self.per_role * len(catalog.roles) / borne:.0f}, and its effect is better known"
        )


def next_round(counts: Mapping[str, int], budget: int) -> dict[str, int]:
    """Shares a budget of responses so that the axis' error falls most.

    The error of default − mean of R roles is s²(1/n_default + Σ 1/n_role / R²): each response goes where it lowers that
    the most, given how many responses each has so far.
    """
    roles = len(counts) - 1
    weight = {name: 1.0 if name == DEFAULT else 1.0 / roles**2 for name in counts}

    def gain(name: str, n: int) -> float:
        n = max(n, 1)
        return weight[name] * (1 / n - 1 / (n + 1))

    heap = [(-gain(name, n), name, n) for name, n in sorted(counts.items())]
    heapq.heapify(heap)
    shares: dict[str, int] = {}
    for _ in range(budget):
        _, name, n = heapq.heappop(heap)
        shares[name] = shares.get(name, 0) + 1
        heapq.heappush(heap, (-gain(name, n + 1), name, n + 1))
    return shares


def rotation(n: int, questions: int, instructions: int) -> np.ndarray:
    """The first n of an endless sequence of (question, instruction) pairs, `[n, 2]`.

    In every prefix of it, how often a question, an instruction or a pair occurs differs by at most one: within a
    block of lcm(questions, instructions) all pairs differ, and each block shifts the instructions by one.
    """
    j = np.arange(n)
    block = np.lcm(questions, instructions)
    return np.stack([j % questions, (j + j // block) % instructions], axis=1)


def _deal(
    names: Sequence[str], pairs: np.ndarray, pairs_by_name: dict[str, list[tuple[int, int]]], rng: np.random.Generator
) -> None:
    """Gives each name one of the pairs, at random, without asking it a question or using an instruction again while
    others are left to ask and use; `pairs_by_name` is what each has, and is added to."""
    order = rng.permutation(len(names))
    # How much each name minds each pair, `[names, pairs]`: it had the question, or the instruction.
    questions = np.zeros((len(names), pairs[:, 0].max() + 1), dtype=int)
    instructions = np.zeros((len(names), pairs[:, 1].max() + 1), dtype=int)
    for row, name in enumerate(names):
        for question, instruction in pairs_by_name[name]:
            if question < questions.shape[1]:
                questions[row, question] += 1
            if instruction < instructions.shape[1]:
                instructions[row, instruction] += 1
    clash = 4 * questions[:, pairs[:, 0]] + instructions[:, pairs[:, 1]]
    for _ in range(8):
        swapped = False
        for first in range(len(names)):
            if not clash[first, order[first]]:
                continue
            others = rng.permutation(len(names))[:64]
            present_clash = clash[first, order[first]] + clash[others, order[others]]
            better = np.flatnonzero(clash[first, order[others]] + clash[others, order[first]] < present_clash)
            if len(better):
                second = others[better[0]]
                order[first], order[second] = order[second], order[first]
                swapped = True
        if not swapped:
            break
    for name, place in zip(names, order, strict=True):
        pairs_by_name[name].append((int(pairs[place][0]), int(pairs[place][1])))


def assign(
    catalog: Catalog, rounds: Sequence[Mapping[str, int]], seed: int, complete: bool = False
) -> list[list[Prompt]]:
    """The prompts of each round: role responses dealt out of one rotation, the default's out of one of its own.

    complete: whoever's first round has room for every instruction with every question is asked all of them.

    The same rounds and seed give the same prompts, and a further round leaves the earlier ones as they are.
    """
    rng = np.random.default_rng(seed)
    by_count: dict[int, list[str]] = {}
    for role in catalog.roles:
        by_count.setdefault(len(role.instructions), []).append(role.role)
    shuffled = rng.permutation(len(catalog.questions))
    pairs_by_name: dict[str, list[tuple[int, int]]] = {DEFAULT: [], **{r.role: [] for r in catalog.roles}}
    used = dict.fromkeys([*by_count, 0], 0)
    prompts_by_round = []
    for counts in rounds:
        counts_before = {name: len(pairs) for name, pairs in pairs_by_name.items()}
        if complete and counts is rounds[0]:
            for name, n in counts.items():
                texts = catalog.defaults if name == DEFAULT else catalog.role(name).instructions
                if n == len(texts) * len(shuffled):
                    pairs_by_name[name] = [(q, i) for i in range(len(texts)) for q in range(len(shuffled))]
        for size, names in [(0, [DEFAULT]), *sorted(by_count.items())]:
            instructions = size or len(catalog.defaults)
            for k in range(max((counts.get(n, 0) for n in names), default=0)):
                names_due = [
                    n
                    for n in names
                    if counts_before[n] + counts.get(n, 0) > max(len(pairs_by_name[n]), counts_before[n] + k)
                ]
                if not names_due:
                    break
                pairs = rotation(used[size] + len(names_due), len(shuffled), instructions)[used[size] :]
                used[size] += len(names_due)
                _deal(names_due, pairs, pairs_by_name, rng)
        prompts_by_round.append(
            [
                _prompt(catalog, name, int(shuffled[q]), i, counts_before[name] + k, seed)
                for name, pairs in pairs_by_name.items()
                for k, (q, i) in enumerate(pairs[counts_before[name] :])
            ]
        )
    return prompts_by_round


def _prompt(catalog: Catalog, name: str, question: int, instruction: int, index: int, seed: int) -> Prompt:
    texts = catalog.defaults if name == DEFAULT else catalog.role(name).instructions
    system = texts[instruction]
    messages: tuple[Message, ...] = ({"role": "user", "content": catalog.questions[question].question},)
    if system:
        messages = ({"role": "system", "content": system}, *messages)
    return Prompt(messages, name, instruction, question, index, seed=row_seed(seed, name, index))


def row_seed(seed: int, name: str, index: int) -> int:
    """A row's own seed: it does not depend on which rows stand beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()[:8], "big")


def shards(prompts: Sequence[Prompt], size: int, seed: int) -> list[list[Prompt]]:
    """Cuts a round into shards of at most `size`: neighbours share a role, so their shared prefixes are computed once.

    Whole roles are mixed, so that a run that was stopped holds a fair part of them all. Raises `UsageError` for size < 1.
    """
    if size < 1:
        raise UsageError(f"a shard of {size} responses: expected 1 or more")
    names = sorted({p.role for p in prompts})
    place = {name: k for k, name in enumerate(np.random.default_rng(seed).permutation(names))}
    ordered = sorted(prompts, key=lambda p: (place[p.role], p.instruction, p.index))
    return [ordered[k : k + size] for k in range(0, len(ordered), size)]
