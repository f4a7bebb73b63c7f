"""Out of memory: half as much from then on, told once, with the same figures; one line where there is no less to try."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import make_model, make_tokenizer
from personaspace.engines.chat import Span
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.decode_loop import DecodeLoop
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.engines.transformers.onset import OnsetReader
from personaspace.errors import ModelError, OutOfMemory

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


# -- where memory really runs out --------------------------------------------------------------------------------------

ABSURD = 2**50
"""Numbers that no machine has room for: what torch raises for them is its own error."""


@pytest.fixture
def room(engine):
    """How many tokens a pass may have; the first layer asks for more memory than there is where it has more."""
    limit = {"tokens": 10**9}

    def check(_, arguments):
        if arguments[0].shape[0] * arguments[0].shape[1] > limit["tokens"]:
            torch.empty(ABSURD)

    hook = engine.layers[0].register_forward_pre_hook(check)
    yield limit
    hook.remove()


SPANS = [Span(tuple(5 + (k + i) % 200 for i in range(20 + k)), ((4, 12), (14, 20 + k))) for k in range(24)]


def test_conversations_are_read_again_in_smaller_passes(engine, room, caplog):
    def means() -> list[torch.Tensor]:
        return [t.activation for turns in engine.replay(SPANS, read=range(3)) for t in turns]

    before = means()
    room["tokens"] = 150
    after = means()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(before, after, strict=True))
    assert engine.prefill_tokens <= 150
    assert len([r for r in caplog.records if "out of memory" in r.message]) == 1


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda e: list(e.replay(SPANS, read=[1])), "with a conversation of 43 tokens"),
        (lambda e: e.score(list(range(5, 60)), 2), "with a text of 55 tokens"),
        (lambda e: list(e.stream(PROMPTS[0], SAMPLING, read=[1])), "with a reply of up to 8 tokens to "),
        (lambda e: list(e.respond(PROMPTS, SAMPLING, read=[1])), "with one reply in flight"),
    ],
    ids=["replay", "score", "stream", "respond"],
)
def test_what_does_not_fit_at_all_is_one_line_that_says_what_takes_less(engine, room, ask, told):
    room["tokens"] = 10
    with pytest.raises(OutOfMemory, match=rf"^tiny: out of memory {told}.*shorter.*a smaller dtype") as problem:
        ask(engine)
    assert len(str(problem.value).splitlines()) == 1


LIMITED = """
import resource, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from conftest import make_model, make_tokenizer
from personaspace.engines.chat import Span
from personaspace.engines.transformers.engine import TransformersEngine
engine = TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=8)
spans = [Span(tuple(range(5, 105)), ((20, 100),)) for _ in range(800)]
whole = [t.activation for (t,) in engine.replay(spans[:1], read=[1])]
engine.prefill_tokens = 10**9
used = int(next(x for x in open("/proc/self/status") if x.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25,) * 2)
read = [t.activation for (t,) in engine.replay(spans, read=[1])]
assert len(read) == 800 and all(torch.allclose(r, whole[0], atol=1e-4) for r in read)
print(engine.prefill_tokens)
"""


@pytest.mark.long
def test_a_process_that_may_take_no_more_memory_reads_in_passes_that_fit():
    code = LIMITED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 64 <= int(done.stdout) < 10**9
    assert done.stderr.count("out of memory") == 1
