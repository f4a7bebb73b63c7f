"""What is done to logits before a token is drawn: as `transformers` does it, each row by itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

import personaspace as ps
from personaspace.engines.prompts import NEUTRAL_SAMPLING, Sampling
from personaspace.engines.transformers.batching import Row
from personaspace.engines.transformers.sampling import adjust, draw
from personaspace.errors import UsageError

VOCABULARY = 40
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 10, 40, 100]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 2.0]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, -1.0, 2.5]), max_size=4).map(
        lambda biases: tuple(biases.items())
    ),
)


def a_row(sampling, ids=(1, 2), out=()):
    return Row(0, list(ids), sampling, np.zeros(64, dtype=np.float32), out=list(out))


def settings_of(rows, u=0.0):
    return torch.tensor([[r.sampling.temperature, r.sampling.top_p, u] for r in rows])


def processed(logits, row):
    """The same by `transformers`' own processors, in the order in which its `generate` applies them. `[vocabulary]`"""
    sampling = row.sampling
    steps = []
    if sampling.logit_bias:
        steps.append(theirs.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in sampling.logit_bias]))
    if sampling.repetition_penalty != 1:
        steps.append(theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        steps.append(theirs.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            steps.append(theirs.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(theirs.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            steps.append(theirs.MinPLogitsWarper(sampling.min_p))
    scores = logits[None].clone()
    for step in steps:
        scores = step(torch.tensor([[*row.ids, *row.out]]), scores)
    return scores[0]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 10**6), st.lists(st.tuples(SAMPLINGS, TOKENS, TOKENS), min_size=1, max_size=4), st.floats(0, 0.999)
)
def test_every_row_draws_what_transformers_processors_leave_whoever_stands_beside_it(seed, drawn, u):
    logits = torch.randn(len(drawn), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    untouched = logits.clone()
    rows = [a_row(sampling, ids, out) for sampling, ids, out in drawn]
    row_settings = settings_of(rows, u)
    chosen = draw(adjust(logits, rows, row_settings), *row_settings.unbind(-1))
    assert torch.equal(logits, untouched)
    for row, token, own_logits in zip(rows, chosen.tolist(), logits, strict=True):
        expected = processed(own_logits, row)
        if row.sampling.temperature == 0:
            assert expected[token] == expected.max()
            continue
        # The same number points to the same token of the same probabilities, most probable ones first.
        ranked, order = expected.softmax(-1).sort(descending=True)
        cumulative = ranked.cumsum(-1)
        place = order.tolist().index(token)
        assert ranked[place] > 0
        assert cumulative[place] - ranked[place] - 1e-4 <= u <= cumulative[place] + 1e-4


@settings(max_examples=100, deadline=None)
@given(TOKENS, st.lists(st.integers(0, VOCABULARY - 1), max_size=12), st.floats(-2, 2), st.floats(-2, 2))
def test_frequency_and_presence_penalties_count_the_reply_and_not_the_prompt(ids, out, frequency, presence):
    row = a_row(Sampling(frequency_penalty=frequency, presence_penalty=presence), ids, out)
    logits = torch.linspace(-2, 2, VOCABULARY)[None]
    adjusted = adjust(logits, [row], settings_of([row]))[0]
    expected = logits[0].clone()
    for token, count in Counter(out).items():
        expected[token] -= frequency * count + presence
    assert torch.allclose(adjusted, expected, atol=1e-5)


def test_logits_that_nobody_adjusts_are_handed_on_as_they_are():
    rows = [a_row(Sampling()), a_row(Sampling(temperature=0, top_p=1))]
    logits = torch.randn(2, VOCABULARY)
    assert adjust(logits, rows, settings_of(rows)) is logits


def test_numbers_that_are_not_finite_stay_in_their_row():
    rows = [a_row(Sampling(top_k=3, min_p=0.1, repetition_penalty=1.2), out=[3]), a_row(Sampling(top_k=3))]
    logits = torch.randn(2, VOCABULARY)
    alone = adjust(logits[1:].clone(), rows[1:], settings_of(rows[1:]))
    logits[0, ::2] = torch.nan
    beside = adjust(logits, rows, settings_of(rows))
    assert beside[0].isnan().any()
    assert torch.equal(beside[1:], alone)


def test_a_reply_repeats_no_token_under_a_strong_penalty_and_says_only_what_a_bias_leaves(tiny):
    prompt = ps.Prompt(({"role": "user", "content": "hello"},))
    plain, penalised, biased = (
        next(iter(tiny.respond([prompt], Sampling(temperature=0, max_new_tokens=20, **more))))
        for more in ({}, {"presence_penalty": 1000.0}, {"logit_bias": ((65, 1000.0),)})
    )
    assert len(set(plain.token_ids)) < len(plain.token_ids)
    assert len(set(penalised.token_ids)) == len(penalised.token_ids)
    assert set(biased.token_ids) == {65}


def test_a_bias_for_a_token_that_there_is_not_is_refused_before_anything_is_computed(tiny):
    prompt = ps.Prompt(({"role": "user", "content": "hello"},))
    for token in (-1, 300):
        with pytest.raises(UsageError, match=f"logit_bias.*{token}.*from 0 to 299"):
            list(tiny.respond([prompt], Sampling(logit_bias=((token, 1.0),))))


def test_a_sampling_is_told_as_before_there_were_more_fields_where_those_change_nothing():
    earlier = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 512}
    assert Sampling().model_dump() == Sampling(**NEUTRAL_SAMPLING).model_dump(mode="json") == earlier
    more = Sampling(top_k=4, logit_bias=((3, 1.0),))
    assert more.model_dump() == earlier | {"top_k": 4, "logit_bias": ((3, 1.0),)}
    assert Sampling.model_validate_json(more.model_dump_json()) == more
