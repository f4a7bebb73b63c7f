"""The decode loop's buffers: they grow with the rows, and nobody's text depends on it."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personaspace import Add, Cap
from personaspace.engines.prompts import Sampling
from personaspace.engines.transformers import cache
from personaspace.engines.transformers.batching import NOT_FINITE, Row
from personaspace.engines.transformers.decode_loop import Done
from personaspace.engines.transformers.prefill import Prefill
from personaspace.engines.transformers.sampling import uniforms


def rows(engine):
    """Short and long ones, some of which join later."""
    texts = ["hi", "a much longer beginning " * 6, "x", "some words more", "y " * 40]
    return [
        Row(k, engine.chat.text_ids(t), Sampling(temperature=0.8, top_p=0.9, max_new_tokens=n), uniforms(k, n))
        for k, (t, n) in enumerate(zip(texts, (90, 20, 60, 30, 40), strict=True))
    ]


def decoded(engine):
    """Every row's tokens and mean activation, with rows joining at steps 0, 5 and 30; and the widest that the loop was."""
    loop, waiting, found, widest = engine.open_loop(400, range(3), rows=4), rows(engine), {}, 0
    for step in range(300):
        for at, count in ((0, 2), (5, 1), (30, 2)):
            if step == at:
                loop.join([waiting.pop(0) for _ in range(count)])
        if not loop.rows:
            break
        for done in loop.step():
            found[done.row.key] = (done.row.out, done.mean)
        widest = max(widest, loop.cache.window.columns)
    return found, widest, loop


def test_what_rows_say_does_not_depend_on_how_the_buffers_grow(tiny, monkeypatch):
    monkeypatch.setattr(tiny.chat, "end_ids", frozenset())
    monkeypatch.setattr(cache, "COLUMNS", 512)
    whole, _, _ = decoded(tiny)
    monkeypatch.setattr(cache, "COLUMNS", 16)
    monkeypatch.setattr(cache, "SLACK", 4)
    grown, widest, loop = decoded(tiny)
    assert 16 < widest <= 404
    assert {k: out for k, (out, _) in grown.items()} == {k: out for k, (out, _) in whole.items()}
    for k, (_, mean) in grown.items():
        assert torch.allclose(mean, whole[k][1], atol=1e-4)
    loop.join(rows(tiny)[:1])
    assert loop.cache.window.columns == 16


def test_a_row_may_end_at_tokens_of_its_own(tiny):
    (whole,) = rows(tiny)[:1]
    (row,) = rows(tiny)[:1]
    whole.end_ids = frozenset()
    for r in (whole, row):
        r.end_ids = frozenset(whole.out[4:5])
        loop = tiny.open_loop(400, [0], rows=1)
        loop.join([r])
        while loop.rows:
            loop.step()
    assert (len(whole.out), whole.finish) == (90, "length")
    assert (row.end, row.finish) == (whole.out[4], "stop")
    assert row.out == whole.out[: whole.out.index(whole.out[4])]


def test_buffers_are_no_longer_than_the_rows_that_there_are(tiny):
    loop = tiny.open_loop(5000, [0], rows=4)
    (row,) = rows(tiny)[:1]
    loop.join([row])
    loop.step()
    assert loop.cache.layers[0].keys.shape[2] == cache.COLUMNS
    assert loop.cache.columns == pytest.approx(5000 + cache.SLACK)


POISON = (Add(torch.ones(32), layer=0, alpha=3e38, relative=False),) * 2
"""Steering so strong that the residual stream overflows: what a request may ask for."""


def a_row(engine, key: int, length: int, new: int, interventions=()) -> Row:
    ids = engine.chat.text_ids("abcdefghij" * 20)[:length]
    return Row(key, ids, Sampling(temperature=0.8, max_new_tokens=new), uniforms(key, new), interventions)


def drained(loop, arrivals) -> dict[int, Done]:
    """Every row's end; arrivals: at which step which rows join, while there is room."""
    ended, step = {}, 0
    while loop.rows or arrivals:
        while arrivals and arrivals[0][0] <= step and len(arrivals[0][1]) <= loop.free:
            loop.join(arrivals.pop(0)[1])
        if loop.rows:
            ended |= {done.row.key: done for done in loop.step()}
        step += 1
    return ended


def test_two_requests_that_join_together_after_a_poisoned_one_reply_as_they_do_alone(tiny, monkeypatch):
    monkeypatch.setattr(tiny.chat, "end_ids", frozenset())
    alone = {k: drained(tiny.open_loop(200, range(3)), [(0, [a_row(tiny, k, n, 6)])])[k] for k, n in ((1, 20), (2, 3))}
    loop = tiny.open_loop(200, range(3), rows=4)
    ended = drained(loop, [(0, [a_row(tiny, 0, 30, 6, POISON)]), (1, [a_row(tiny, 2, 3, 6), a_row(tiny, 1, 20, 6)])])
    assert ended[0].row.finish == NOT_FINITE
    for key, done in alone.items():
        assert ended[key].row.out == done.row.out
        assert torch.allclose(ended[key].mean, done.mean, atol=1e-5)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.tuples(st.integers(1, 90), st.integers(1, 9), st.booleans()), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.long
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ARRIVALS)
def test_no_row_hears_of_a_poisoned_one_in_whatever_order_they_join_and_leave(tiny, monkeypatch, arrivals):
    monkeypatch.setattr(tiny.chat, "end_ids", frozenset())
    monkeypatch.setattr(cache, "COLUMNS", 16)
    monkeypatch.setattr(cache, "SLACK", 4)
    plan, step, shapes = [], 0, []
    for pause, group in arrivals:
        step += pause
        keys = range(len(shapes), len(shapes) + len(group))
        plan.append(
            (
                step,
                [a_row(tiny, k, n, new, POISON if bad else ()) for k, (n, new, bad) in zip(keys, group, strict=True)],
            )
        )
        shapes += group
    ended = drained(tiny.open_loop(100, range(3), rows=4), plan)
    for key, (length, new, bad) in enumerate(shapes):
        if bad:
            assert ended[key].row.finish == NOT_FINITE
            continue
        (alone,) = drained(tiny.open_loop(100, range(3), rows=1), [(0, [a_row(tiny, key, length, new)])]).values()
        assert ended[key].row.out == alone.row.out
        assert torch.allclose(ended[key].mean, alone.mean, atol=1e-5)


def in_pieces(loop, row: Row, tokens: int) -> Prefill:
    """A row that joins after its prompt was computed so many tokens at a time."""
    prefill = loop.begin(row)
    while prefill.remaining:
        prefill.advance(tokens)
    loop.join_computed(prefill)
    return prefill


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_a_prompt_in_pieces_gives_what_it_gives_whole_also_under_a_cap(tiny, tokens):
    cap = (Cap(torch.linspace(-1, 1, 32), (1,), floor=2.0),)
    for applied in ((), cap):
        whole = drained(tiny.open_loop(400, range(3), rows=2), [(0, [a_row(tiny, 1, 60, 8, applied)])])[1]
        loop = tiny.open_loop(400, range(3), rows=2)
        loop.join([a_row(tiny, 0, 9, 20)])
        loop.step()
        in_pieces(loop, a_row(tiny, 1, 60, 8, applied), tokens)
        pieces = drained(loop, [])[1]
        assert pieces.row.out == whole.row.out
        assert torch.allclose(pieces.mean, whole.mean, atol=1e-4)


@pytest.mark.parametrize("capped", [False, True])
def test_a_pass_that_is_interrupted_after_every_layer_gives_what_it_gives_whole(tiny, capped):
    cap = (Cap(torch.linspace(-1, 1, 32), (1,), floor=2.0),) if capped else ()
    whole = drained(tiny.open_loop(400, range(3), rows=3), [(0, [a_row(tiny, 1, 60, 8, cap)])])[1]
    other = drained(tiny.open_loop(400, range(3), rows=3), [(0, [a_row(tiny, 0, 9, 30, POISON[:0])])])[0]
    loop = tiny.open_loop(400, range(3), rows=3)
    loop.join([a_row(tiny, 0, 9, 30)])
    prefills = [loop.begin(a_row(tiny, k, 60, 8, cap)) for k in (1, 2)]
    steps, ended = 0, {}
    while any(p.remaining for p in prefills):  # a step of the others, and another prompt's pass, between two layers
        for p in prefills:
            p.advance(30, 0.0)
        ended |= {d.row.key: d for d in loop.step()}
        steps += 1
    assert steps >= 2 * len(tiny.layers)
    loop.join_computed(prefills[0])
    ended |= drained(loop, [])
    assert ended[1].row.out == whole.row.out
    assert ended[0].row.out == other.row.out
    assert torch.allclose(ended[1].mean, whole.mean, atol=1e-4)
    assert torch.allclose(ended[0].mean, other.mean, atol=1e-4)


def test_a_row_that_steps_apart_says_what_it_says_beside_others_and_leaves_the_next_turn_its_beginning(tiny):
    whole = drained(tiny.open_loop(400, range(3), rows=2), [(0, [a_row(tiny, 1, 60, 8)])])[1]
    loop = tiny.open_loop(400, range(3), rows=2, keep=1 << 24)
    prefill = loop.begin(a_row(tiny, 1, 60, 8))
    prefill.advance(60)
    alone = loop.apart(prefill)
    done = drained(alone, [])[1]
    assert done.row.out == whole.row.out
    assert torch.allclose(done.mean, whole.mean, atol=1e-4)
    ids = [*done.row.ids, *done.row.out, 9, 9]
    nexts = [Row(k, ids, Sampling(temperature=0.8, max_new_tokens=6), uniforms(3, 6)) for k in range(3)]
    expected = drained(tiny.open_loop(400, range(3), rows=2), [(0, [nexts[0]])])[0].row.out
    for row in nexts[1:]:  # the first does not write over what the second begins with
        assert in_pieces(loop, row, 64).done == len(ids) - 1
        assert drained(loop, [])[row.key].row.out == expected


def test_what_a_row_apart_leaves_to_its_next_turn_takes_no_more_than_twice_its_tokens(tiny):
    loop = tiny.open_loop(2000, range(3), rows=2, keep=1 << 24)
    prefill = loop.begin(a_row(tiny, 1, 60, 1500))
    prefill.advance(60)
    alone = loop.apart(prefill)

    def end_soon(_, row):
        row.finish = "stop" if len(row.out) >= 5 else row.finish

    while alone.rows:
        alone.step(end_soon)
    ((_, ids, cache),) = loop.kept._kept.values()
    taken = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
    assert len(ids) * tiny.layout.per_token <= taken <= 2 * len(ids) * tiny.layout.per_token


def test_a_pass_that_nobody_wants_any_more_ends_where_it_stands_and_one_that_fails_says_so(tiny):
    loop = tiny.open_loop(400, range(3), rows=2)
    prefill = loop.begin(a_row(tiny, 1, 60, 8))
    prefill.advance(30, 0.0)
    prefill.drop()
    assert "personaspace-prompt" not in {thread.name for thread in threading.enumerate()}
    handle = tiny.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            loop.begin(a_row(tiny, 1, 60, 8)).advance(30)
    finally:
        handle.remove()
    in_pieces(loop, a_row(tiny, 1, 60, 8), 30)
    assert drained(loop, [])[1].row.finish


def test_the_next_turn_goes_on_from_what_the_last_has_left_and_says_what_it_says_alone(tiny):
    loop = tiny.open_loop(400, range(3), rows=2, keep=1 << 24)
    first = a_row(tiny, 1, 50, 12)
    in_pieces(loop, first, 64)
    drained(loop, [])
    ids = [*first.ids, *first.out, *tiny.chat.text_ids(" and then?")]
    again = [
        Row(k, ids, Sampling(temperature=0.8, max_new_tokens=8), uniforms(5, 8), end_ids=frozenset()) for k in (2, 3)
    ]
    prefill = in_pieces(loop, again[0], 64)
    assert tiny.open_loop(400, (), rows=1).begin(again[1]).done == 0 < prefill.done
    goes_on = drained(loop, [])[2]
    alone = drained(tiny.open_loop(400, range(3), rows=2), [(0, [again[1]])])[3]
    assert goes_on.row.out == alone.row.out
    assert torch.allclose(goes_on.mean, alone.mean, atol=1e-4)


@pytest.mark.parametrize("where", ["all", "generated"])
def test_what_was_computed_under_an_intervention_is_not_gone_on_with_under_another(tiny, where):
    add = (Add(torch.ones(32), layer=0, alpha=2.0, relative=False, where=where),)
    loop = tiny.open_loop(400, range(3), rows=2, keep=1 << 24)
    first = a_row(tiny, 1, 50, 12, add)
    in_pieces(loop, first, 64)
    drained(loop, [])
    ids = [*first.ids, *first.out, 9, 9, 9]
    plain, same = (Row(k, ids, Sampling(max_new_tokens=4), uniforms(0, 4), i) for k, i in ((2, ()), (3, add)))
    # A prompt is not touched by what is for generated tokens alone: it may be shared, the reply to it may not.
    reused = {"all": (0, 50 + len(first.out)), "generated": (50, 50)}[where]
    assert (loop.begin(plain).done, loop.begin(same).done) == reused


def test_what_is_kept_is_bounded_and_the_longest_unused_goes_first(tiny):
    per_token = tiny.layout.per_token
    loop = tiny.open_loop(400, (), rows=2, keep=150 * per_token)
    rows = [Row(k, [k + 5] * 60, Sampling(max_new_tokens=1), uniforms(k, 1)) for k in range(4)]
    for row in rows[:2]:
        in_pieces(loop, row, 64)
        drained(loop, [])
    assert loop.begin(rows[0]).done == 59
    in_pieces(loop, rows[2], 64)
    drained(loop, [])
    assert [loop.begin(row).done for row in rows] == [59, 0, 59, 0]
    assert loop.kept.bytes <= 150 * per_token
