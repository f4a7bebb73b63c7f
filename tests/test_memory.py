"""Out of memory in a batch: half the rows from then on, told once, and the same replies."""

from __future__ import annotations

import pytest
import torch

from conftest import make_model, make_tokenizer
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.decode_loop import DecodeLoop
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.engines.transformers.onset import OnsetReader
from personaspace.errors import ModelError

PROMPTS = [Prompt(({"role": "user", "content": f"What is {'so ' * (k % 5)}{k}?"},), index=k, seed=k) for k in range(40)]
SAMPLING = Sampling(max_new_tokens=8)

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    MemoryError(),
]


@pytest.fixture
def engine() -> TransformersEngine:
    return TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=32)


def texts(engine) -> dict[int, tuple[str, torch.Tensor]]:
    return {r.prompt.index: (r.text, r.activation) for r in engine.respond(PROMPTS, SAMPLING, read=range(3))}


def same(one, other) -> None:
    assert one.keys() == other.keys()
    for k, (text, activation) in one.items():
        assert other[k][0] == text
        assert torch.allclose(other[k][1], activation, atol=1e-4)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("step", ["step", "join"])
def test_replies_are_the_same_with_half_the_rows_and_it_is_told_once(engine, monkeypatch, caplog, error, step):
    before = texts(engine)
    real, sizes = getattr(DecodeLoop, step), []

    def short(self, *rest):
        rows = len(self.rows) + (len(rest[0]) if step == "join" else 0)
        sizes.append(self.size)
        if rows > 5:
            raise error
        return real(self, *rest)

    monkeypatch.setattr(DecodeLoop, step, short)
    same(before, texts(engine))
    assert sizes[0] == 32
    assert engine.max_rows in (4, 5)
    assert len([r for r in caplog.records if "out of memory" in r.message]) == 1
    sizes.clear()
    same(before, texts(engine))
    assert set(sizes) == {engine.max_rows}, "the next call knows how much fits"


def test_halfway_through_replies_that_were_given_are_not_given_again(engine, monkeypatch):
    before, real, calls = texts(engine), DecodeLoop.step, []

    def now_and_then(self, *rest):
        calls.append(0)
        if len(calls) in (6, 15):
            raise ERRORS[0]
        return real(self, *rest)

    monkeypatch.setattr(DecodeLoop, "step", now_and_then)
    given = [r.prompt.index for r in engine.respond(PROMPTS, SAMPLING, read=range(3))]
    assert sorted(given) == sorted(before)


def test_where_one_reply_is_too_much_it_is_one_line(engine, monkeypatch):
    def never(self, *rest):
        raise ERRORS[0]

    monkeypatch.setattr(DecodeLoop, "step", never)
    with pytest.raises(ModelError, match=r"^tiny: out of memory with one reply in flight; .*max_new_tokens") as problem:
        texts(engine)
    assert len(str(problem.value).splitlines()) == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory")])
def test_another_error_stays_what_it_is(engine, monkeypatch, error):
    def wrong(self, *rest):
        raise error

    monkeypatch.setattr(DecodeLoop, "step", wrong)
    with pytest.raises(type(error), match=str(error)):
        texts(engine)


def test_prompts_are_read_in_smaller_passes(engine, monkeypatch, caplog):
    def onsets() -> dict[int, torch.Tensor]:
        return {r.prompt.index: r.activation for r in engine.onsets(PROMPTS, read=range(3))}

    before, real = onsets(), OnsetReader.onsets

    def short(self, prompts):
        for count, read in enumerate(real(self, prompts)):
            if self.tokens > 128 and count == 3:
                raise ERRORS[0]
            yield read

    monkeypatch.setattr(OnsetReader, "onsets", short)
    after = onsets()
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[k], before[k], atol=1e-4) for k in before)
    assert engine.prefill_tokens == 128
    assert len([r for r in caplog.records if "out of memory" in r.message]) == 1
