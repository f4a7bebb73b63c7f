"""The decode loop and replay against plain forward passes: same tokens in, same numbers out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BertConfig

from conftest import FAMILIES, NO_SYSTEM, TEMPLATE, make_model, make_tokenizer
from personaspace.engines import Span
from personaspace.engines.chat import Chat
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.engines.transformers.sampling import draw, uniforms
from personaspace.errors import ActivationError, ModelError, UsageError
from personaspace.model.loading import pick_device
from personaspace.model.residual import find_layers

LONG = "A system prompt that is long enough to be shared by many rows and to be computed apart, once for all of them."


def prompts(n: int, shared: int = 0) -> list[Prompt]:
    """Ragged prompts; the first `shared` of them have a long beginning in common."""
    made = []
    for k in range(n):
        system = [{"role": "system", "content": LONG}] if k < shared else []
        made.append(
            Prompt((*system, {"role": "user", "content": "why? " * (k % 5) + f"question {k}"}), index=k, seed=k)
        )
    return made


def plain(engine: TransformersEngine, ids: list[int], start: int) -> torch.Tensor:
    """The mean over ids[start:] of every layer's residual stream, from hooks on one unpadded forward pass."""
    seen = []
    handles = [
        layer.register_forward_hook(lambda _, __, out: seen.append(out if isinstance(out, torch.Tensor) else out[0]))
        for layer in engine.layers
    ]
    with torch.inference_mode():
        engine.model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack([h[0, start:].mean(0) for h in seen])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = torch.cosine_similarity(a, b, dim=-1).min() >= 0.9999
    return bool(same) and bool(((a - b).norm(dim=-1) / b.norm(dim=-1)).max() <= 1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_in_respond_what_a_plain_pass_reads(family):
    engine = TransformersEngine(make_model(family), make_tokenizer(), rows=5)
    answers = [
        r for r in engine.respond(prompts(12, shared=6), Sampling(max_new_tokens=9), read=range(3)) if r.token_ids
    ]
    assert len(answers) >= 6  # a random model may end a reply at once
    for r in answers:
        ids = engine.chat.prompt_ids(r.prompt.messages)
        assert close(r.activation, plain(engine, [*ids, *r.token_ids], len(ids)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_replays_what_a_plain_pass_reads(family):
    engine = TransformersEngine(make_model(family), make_tokenizer())
    spans = [
        Span(tuple((7 * k + j) % 290 + 4 for j in range(5 + 11 * k)), ((2, 5 + 3 * k), (3 + k, 5 + 9 * k)))
        for k in range(5)
    ]
    for span, turns in zip(spans, engine.replay(spans, read=range(3)), strict=True):
        for (a, b), turn in zip(span.spans, turns, strict=True):
            assert turn.tokens == b - a
            assert close(turn.activation, plain(engine, list(span.token_ids[:b]), a))


def test_greedy_replies_are_those_of_generate(tiny):
    for r in tiny.respond(prompts(20, shared=12), Sampling(temperature=0, max_new_tokens=12)):
        ids = torch.tensor([tiny.chat.prompt_ids(r.prompt.messages)])
        expected = tiny.model.generate(
            ids, do_sample=False, max_new_tokens=12, eos_token_id=sorted(tiny.chat.end_ids), pad_token_id=0
        )
        reply = [t for t in expected[0, ids.shape[1] :].tolist() if t not in tiny.chat.end_ids]
        assert list(r.token_ids) == reply


def test_a_row_gets_the_same_reply_alone_and_among_others(tiny):
    together = {r.prompt.index: r.token_ids for r in tiny.respond(prompts(20, shared=9), Sampling(max_new_tokens=10))}
    for p in prompts(20, shared=9)[::4]:
        (alone,) = tiny.respond([p], Sampling(max_new_tokens=10))
        assert alone.token_ids == together[p.index]


def test_rows_keep_their_own_sampling_and_length(tiny):
    mixed = [
        Prompt(p.messages, index=p.index, seed=1, sampling=Sampling(temperature=0, max_new_tokens=2 + p.index))
        for p in prompts(9)
    ]
    lengths = {r.prompt.index: len(r.token_ids) for r in tiny.respond(mixed, Sampling()) if r.finish_reason == "length"}
    assert lengths
    assert all(n == 2 + k for k, n in lengths.items())


def test_the_end_of_turn_is_not_counted_and_an_empty_reply_reads_zero():
    engine = TransformersEngine(make_model("llama"), make_tokenizer())
    first = next(engine.respond(prompts(1), Sampling(temperature=0, max_new_tokens=4), read=range(3)))
    engine.chat.end_ids = frozenset([first.token_ids[0]])
    ended = next(engine.respond(prompts(1), Sampling(temperature=0, max_new_tokens=4), read=range(3)))
    assert (ended.token_ids, ended.finish_reason) == ((), "stop")
    assert not ended.activation.any()


def test_nan_names_layer_and_response():
    engine = TransformersEngine(make_model("llama"), make_tokenizer())
    engine.model.model.layers[2].mlp.down_proj.weight[:] = float("nan")
    asked = [Prompt(({"role": "user", "content": "?"},), role="ghost", question=7)]
    with pytest.raises(ActivationError, match="layer 2 of the response of ghost to question 7"):
        list(engine.respond(asked, Sampling(temperature=0, max_new_tokens=2), read=range(3)))


def test_layers_are_found_beside_a_list_of_experts_as_long_as_they_are():
    model = make_model("mixtral")
    assert find_layers(model) is model.model.layers


def test_a_model_whose_stream_is_not_where_it_seems_is_refused():
    between = make_model("llama")
    between.model.layers[2].register_forward_pre_hook(lambda _, given: (given[0] + 1, *given[1:]))
    with pytest.raises(ModelError, match="not the next one's input"):
        TransformersEngine(between, make_tokenizer())
    behind = make_model("llama")
    own_forward = behind.model.forward

    def forward(**inputs):
        output = own_forward(**inputs)
        output.last_hidden_state = 2 * output.last_hidden_state + 1
        return output

    behind.model.forward = forward
    with pytest.raises(ModelError, match="does not come of the last layer's output"):
        TransformersEngine(behind, make_tokenizer())


def test_what_rounding_leaves_of_large_numbers_is_not_taken_for_looking_ahead():
    # A fine-tune of SmolLM2 has entries of 25,000, and small ones of which inputs of other lengths leave others.
    def hook(_, __, output):
        hidden = 1000 * output
        hidden[..., 0] = 0.1 * output.shape[1]
        return hidden

    model = make_model("llama")
    model.model.layers[-1].register_forward_hook(hook)
    TransformersEngine(model, make_tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_looks_ahead_is_refused_in_any_dtype(dtype):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=300, is_decoder=False, initializer_range=0.2, **sizes)
    with pytest.raises(ModelError, match="hear of those behind them"):
        TransformersEngine(AutoModelForCausalLM.from_config(config).to(dtype).eval(), make_tokenizer())


def test_a_model_that_looks_ahead_is_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    model = AutoModelForCausalLM.from_config(BertConfig(vocab_size=300, is_decoder=False, **sizes)).eval()
    with pytest.raises(ModelError, match="hear of those behind them"):
        TransformersEngine(model, make_tokenizer())


def test_a_layer_that_is_not_there_is_refused(tiny):
    with pytest.raises(UsageError, match="layers 0 to 2"):
        list(tiny.respond(prompts(1), Sampling(max_new_tokens=1), read=[3]))


def test_a_template_without_a_system_role_gets_the_instruction_before_the_users_text():
    chat = Chat(make_tokenizer(NO_SYSTEM))
    assert not chat.takes_system
    shown = chat.render([{"role": "system", "content": "Be a ghost."}, {"role": "user", "content": "Boo?"}])
    assert "user\nBe a ghost.\n\nBoo?" in shown


def test_a_base_model_gets_a_plain_transcript():
    chat = Chat(make_tokenizer(None))
    assert chat.kind.startswith("plain transcript")
    shown = chat.render([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    assert shown == "S\n\nUser: U\n\nAssistant:"


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_conversation_may_begin_with_a_reply(template):
    chat = Chat(make_tokenizer(template))
    messages = [{"role": "assistant", "content": "assistant"}, {"role": "user", "content": "yes?"}]
    span, places = chat.spans(messages)
    ((a, b),) = span.spans
    assert places == [0]
    header = chat.tokenizer.decode(list(span.token_ids[:a]), skip_special_tokens=True)
    assert header.strip() == ("assistant" if template else "Assistant:")
    assert chat.tokenizer.decode(list(span.token_ids[a:b])) == "assistant"


def test_a_text_that_is_gone_on_with_does_not_end_at_a_blank_line_as_a_transcripts_reply_does():
    tokenizer = make_tokenizer(None)
    tokenizer.add_tokens(["\n\n"])
    chat = Chat(tokenizer, [2])
    assert chat.end_ids - chat.text_end_ids == {tokenizer.convert_tokens_to_ids("\n\n")}
    assert chat.text_end_ids == {2}


def test_a_token_that_is_part_of_a_character_has_its_own_bytes():
    chat = Chat(make_tokenizer())
    for text in ("é", "\ufffd", "a b\n", "語"):
        assert b"".join(map(chat.token_bytes, chat.text_ids(text))) == text.encode()
    chat.tokenizer.add_tokens(["<0xE9>"])
    chat.tokenizer.decode = lambda ids: "\ufffd"  # as a vocabulary with such tokens has it
    assert chat.token_bytes(chat.tokenizer.convert_tokens_to_ids("<0xE9>")) == b"\xe9"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_said_in_one_line(device):
    with pytest.raises(UsageError, match=f"device={device}: ") as problem:
        pick_device(device)
    assert "\n" not in str(problem.value)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.long
@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda t: t.strip()), min_size=1, max_size=4))
def test_spans_hold_exactly_the_replies_text(replies):
    chat = Chat(make_tokenizer())
    messages = [m for r in replies for m in ({"role": "user", "content": "user"}, {"role": "assistant", "content": r})]
    span, places = chat.spans(messages)
    assert places == list(range(1, 2 * len(replies), 2))
    for (a, b), reply in zip(span.spans, replies, strict=True):
        assert chat.tokenizer.decode(list(span.token_ids[a:b])) == reply.strip()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.floats(0.05, 1), st.floats(0.1, 2), st.integers(5, 700))
def test_a_drawn_token_is_always_in_the_nucleus(seed, top_p, temperature, vocabulary):
    torch.manual_seed(seed)
    logits = torch.randn(4, vocabulary) * 3
    u = torch.from_numpy(uniforms(seed, 4))
    chosen = draw(logits, torch.full((4,), temperature), torch.full((4,), top_p), u)
    for row, token in enumerate(chosen.tolist()):
        p, order = (logits[row] / temperature).softmax(-1).sort(descending=True)
        place = order.tolist().index(token)
        assert p[:place].sum() < top_p + 1e-5


def test_draws_follow_the_nucleus_probabilities():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    u = torch.from_numpy(uniforms(3, 4000))
    chosen = draw(logits, torch.ones(4000), torch.full((4000,), 0.9), u)
    shares = torch.bincount(chosen, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=0.03)
