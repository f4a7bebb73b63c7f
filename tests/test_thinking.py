"""What is thought and what is answered: told apart in replies, in transcripts and in what is read of either."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import personaspace as ps
from conftest import TEMPLATE, make_model, make_tokenizer
from personaspace.catalog import load_catalog
from personaspace.engines.chat import NEUTRAL_BEGINNING, Chat
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.thoughts import THOUGHT_MARKERS, ReplyText, split_text
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import ModelError, RunMismatch, UsageError
from personaspace.formats.transcripts import Transcript
from personaspace.holding import calibrate
from personaspace.holding.trajectories import write_trajectories
from personaspace.mapping.sums import FromSums, Sums
from personaspace.model.interventions import Add
from personaspace.runs import Run
from personaspace.stats.vectors import Cells, blocks_of
from test_control import FAMILIES, family_tokenizer
from test_engine import close, plain

OPENS = (
    TEMPLATE.replace("{% endfor %}", "{% endfor %}", 1)
    + "{% if add_generation_prompt %}<think>\n{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)
ALWAYS = TEMPLATE + "{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"
USER_FIRST = "{% if messages[0].role != 'user' %}{{ raise_exception('a user first') }}{% endif %}" + TEMPLATE


def thinking_tokenizer(template: str):
    tokenizer = make_tokenizer(template)
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def thinking_engine(template: str = OPENS, **options) -> TransformersEngine:
    """A random model that ends its thoughts, where it has any, at a random place."""
    tokenizer, model = thinking_tokenizer(template), make_model("llama")
    closing = tokenizer.convert_tokens_to_ids("</think>")

    def plant(_, __, logits):
        logits[..., closing] += 0.8 * logits.std(-1) * 3
        return logits

    model.lm_head.register_forward_hook(plant)
    return TransformersEngine(model, tokenizer, rows=4, **options)


def prompts(n: int) -> list[Prompt]:
    return [Prompt(({"role": "user", "content": f"why {k}?"},), index=k, seed=k) for k in range(n)]


def expected_parts(engine, ids, inside: bool):
    """(thoughts, answer) of a reply, by a plain search for the closing marker."""
    closing = engine.tokenizer.convert_tokens_to_ids("</think>")
    opening = engine.tokenizer.convert_tokens_to_ids("<think>")

    def blank(t):
        return not engine.tokenizer.decode([t]).strip()

    if not inside:
        return (0, 0), (0, len(ids))
    end = ids.index(closing) if closing in ids else len(ids)
    start, behind, answer = 0, end, min(end + 1, len(ids))
    while start < end and blank(ids[start]):
        start += 1
    while end > start and blank(ids[end - 1]) and closing in ids:
        end -= 1
    while answer < len(ids) and blank(ids[answer]):
        answer += 1
    assert opening not in ids[behind : answer + 1]
    return (start, end), (answer, len(ids))


@pytest.mark.long
def test_readings_of_thoughts_and_answers_equal_a_plain_loops():
    engine = thinking_engine(thinking=True)
    asked, sampling = prompts(24), Sampling(temperature=1, top_p=1, max_new_tokens=24)
    by_part = {
        part: {r.prompt.index: r for r in engine.respond(asked, sampling, read=range(3), span=part)}
        for part in ("answer", "thinking", "all")
    }
    lengths = []
    for k, response in by_part["answer"].items():
        ids = list(response.token_ids)
        prompt_ids = engine.chat.prompt_ids(response.prompt.messages)
        (a, b), (c, d) = expected_parts(engine, ids, inside=True)
        lengths.append((b - a, d - c))
        assert response.answer == (c, d)
        assert response.tokens == d - c
        if c < d:
            assert close(response.activation, plain(engine, prompt_ids + ids[:d], len(prompt_ids) + c))
        else:
            assert not response.activation.any()
        thought = by_part["thinking"][k]
        assert (thought.token_ids, thought.text, thought.thinking) == (
            response.token_ids,
            response.text,
            response.thinking,
        )
        if a < b:
            assert thought.read == (a, b)
            assert close(thought.activation, plain(engine, prompt_ids + ids[:b], len(prompt_ids) + a))
        if ids:
            assert close(by_part["all"][k].activation, plain(engine, prompt_ids + ids, len(prompt_ids)))
        assert response.text == engine.chat.decode(ids[c:d]).lstrip()
        assert response.thinking == engine.chat.decode(ids[a:b]).strip()
    assert sum(a > 0 and b > 0 for a, b in lengths) >= 8  # the model does think, and answer


def test_before_touched_and_projections_are_of_the_answer_too():
    engine = thinking_engine(thinking=True)
    added = Add(torch.ones(32), 1, 0.5, relative=False, where="generated")
    along = torch.nn.functional.normalize(torch.ones(3, 32), dim=-1)
    for r in engine.respond(
        prompts(8), Sampling(max_new_tokens=20), read=range(3), before=True, along=along, interventions=[added]
    ):
        start, end = r.answer
        assert r.touched == end - start
        if end == start:
            assert r.projections is None
            continue
        assert len(r.projections) == end - start
        assert torch.allclose(r.projections.mean(0), (r.activation * along).sum(-1), atol=1e-4)
        assert torch.allclose(r.before[1] + 0.5 * torch.ones(32), r.activation[1], atol=1e-4)
        assert torch.allclose(r.before[0], r.activation[0], atol=1e-5)


def test_thinking_is_off_unless_it_is_asked_for_and_the_model_says_which():
    rules = {
        "off": thinking_engine(),
        "on": thinking_engine(thinking=True),
        "high": thinking_engine(thinking="high"),
        "always": thinking_engine(ALWAYS),
    }
    assert {rule: e.info.notes["thinking"] for rule, e in rules.items()} == {rule: rule for rule in rules}
    messages = prompts(1)[0].messages
    assert rules["off"].chat.prompt_ids(messages) != rules["on"].chat.prompt_ids(messages)
    assert rules["off"].chat.prompt_ids(messages, thinking=True) == rules["on"].chat.prompt_ids(messages)
    (reply,) = rules["off"].respond(prompts(1), Sampling(max_new_tokens=6))
    assert reply.thinking == ""
    assert reply.answer == (0, len(reply.token_ids))
    assert "thinking" not in TransformersEngine(make_model("llama"), make_tokenizer()).info.notes


def test_a_part_that_there_is_not_is_refused():
    engine = thinking_engine()
    with pytest.raises(UsageError, match="span=thoughts: expected one of answer, thinking, all"):
        list(engine.respond(prompts(1), Sampling(), span="thoughts"))
    with pytest.raises(UsageError, match="span=x: expected one of"):
        list(engine.replay([prompts(1)[0].messages], read=[0], span="x"))


def test_a_stream_says_which_text_and_which_tokens_are_thoughts():
    engine = thinking_engine(thinking=True)
    for prompt in prompts(6):
        (reply,) = engine.respond([prompt], Sampling(max_new_tokens=16), read=[1])
        steps = list(engine.stream(prompt, Sampling(max_new_tokens=16), read=[1]))
        assert "".join(s.text for s in steps) == reply.text
        assert "".join(s.thinking for s in steps) == reply.thinking
        counted = [s.activation for s in steps if s.activation is not None and s.is_answer]
        assert len(counted) == reply.tokens
        if counted:
            assert close(torch.stack(counted).mean(0), reply.activation)


def test_harmonys_channels_are_an_answer_and_thoughts():
    chat = Chat(family_tokenizer("harmony"))
    assert chat.thinking_rule == "always"
    written = "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant<|channel|>final<|message|>Hi"
    ids = chat.tokenizer(written, add_special_tokens=False)["input_ids"]
    reply = ReplyText(chat.decode, chat.splitter(chat.prompt_ids([{"role": "user", "content": "?"}])))
    for k in range(1, len(ids) + 1):
        reply.add(ids[:k], final=k == len(ids))
    assert (reply.text, reply.thinking) == ("Hi", "hmm")
    parts = chat.parts([{"role": "user", "content": "?"}], ids)
    assert chat.decode(ids[slice(*parts.answer)]) == "Hi"
    plain_reply = chat.tokenizer("Hi there", add_special_tokens=False)["input_ids"]
    assert chat.parts([{"role": "user", "content": "?"}], plain_reply).answer == (0, len(plain_reply))


def test_harmonys_transcripts_are_rendered_by_the_template_and_read_at_the_answers():
    chat = Chat(family_tokenizer("harmony"))
    said = "<|channel|>analysis<|message|>hmm {k}<|end|><|start|>assistant<|channel|>final<|message|>Hi {k}<|return|>"
    talk = [
        {"role": r, "content": said.replace("{k}", str(k)) if r == "assistant" else "hi<|channel|>final"}
        for k in range(2)
        for r in ("user", "assistant")
    ]
    span, places = chat.spans(talk)
    assert [chat.tokenizer.decode(list(span.token_ids[a:b])) for a, b in span.spans] == ["Hi 0", "Hi 1"]
    assert places == [1, 3]
    thoughts, where = chat.spans(talk, "thinking")
    assert [chat.tokenizer.decode(list(thoughts.token_ids[a:b])) for a, b in thoughts.spans] == ["hmm 1"]
    assert where == [3]  # the template keeps the last turn's alone
    channel = chat.tokenizer.convert_tokens_to_ids("<|channel|>")
    assert span.token_ids.count(channel) == 3


@pytest.mark.parametrize("name", ["qwen3", "deepseek"])
def test_answers_are_found_where_a_template_drops_earlier_thoughts(name):
    chat = Chat(family_tokenizer(name))
    talk = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "<think>\nwell, Four\n</think>\n\nFour"},
        {"role": "user", "content": "Four?"},
        {"role": "assistant", "content": "<think>Four</think>Four."},
    ]
    for part, texts in {"answer": ["Four", "Four."], "thinking": ["Four"]}.items():
        span, places = chat.spans(talk, part)
        read = [chat.tokenizer.decode(list(span.token_ids[a:b])) for a, b in span.spans]
        if part == "thinking" and name == "deepseek":  # none of its thoughts stand in the text
            assert read == []
        else:
            assert read == texts
        assert places == [1, 3][2 - len(read) :]
    assert list(chat.spans(talk)[0].token_ids) == chat.tokenizer(chat.render(talk, reply=False))["input_ids"]


def test_thoughts_stay_text_for_a_model_that_knows_none():
    chat = Chat(make_tokenizer())
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>a</think>b"}]
    span, _ = chat.spans(talk)
    ((a, b),) = span.spans
    assert chat.tokenizer.decode(list(span.token_ids[a:b])) == "<think>a</think>b"


def test_replays_of_thoughts_and_answers_equal_a_plain_pass():
    engine = thinking_engine()
    talk = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "<think>a b</think>c d"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "e"},
    ]
    for part, places in {"answer": [1, 3], "thinking": [1], "all": [1, 3]}.items():
        span, _ = engine.chat.spans(talk, part)
        (turns,) = engine.replay([talk], read=range(3), span=part)
        assert [t.index for t in turns] == places
        for (a, b), turn in zip(span.spans, turns, strict=True):
            assert close(turn.activation, plain(engine, list(span.token_ids[:b]), a))


def test_a_conversation_that_begins_with_a_reply_gets_a_neutral_beginning_that_is_noted():
    chat = Chat(make_tokenizer(USER_FIRST))
    talk = [{"role": "assistant", "content": "Welcome."}, {"role": "user", "content": "hi"}]
    span, places = chat.spans(talk)
    ((a, b),) = span.spans
    assert places == [0]
    assert chat.tokenizer.decode(list(span.token_ids[a:b])) == "Welcome."
    (note,) = span.notes
    assert NEUTRAL_BEGINNING in note
    assert chat.spans([{"role": "user", "content": "hi"}, *talk])[0].notes == ()
    with pytest.raises(ModelError, match="a user first"):
        chat.prompt_ids(talk)


PIECES = ["a", " ", "\n", "<", "think", ">", "</think>", "<think>", "é", "語"]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("as_tokens", [False, True])
@settings(deadline=None, max_examples=80)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_a_reply_is_told_apart_alike_as_it_is_made_and_when_it_is_whole(inside, as_tokens, text):
    tokenizer = thinking_tokenizer(ALWAYS) if as_tokens else make_tokenizer(ALWAYS)
    chat = Chat(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = tokenizer("<think>\n" if inside else "x", add_special_tokens=False)["input_ids"]
    whole, growing = ReplyText(chat.decode, chat.splitter(prompt)), ReplyText(chat.decode, chat.splitter(prompt))
    whole.add(ids, final=True)
    answers = [growing.add(ids[:k], final=k == len(ids)) for k in range(1, len(ids) + 1)] or [growing.add([], True)]
    assert "".join(answers) == growing.text == whole.text
    assert growing.thinking == whole.thinking
    if inside and "</think>" in text:
        rest = text.partition("</think>")[2].lstrip()
        assert whole.text == rest or rest.startswith("<think>")
    if not inside and not text.lstrip().startswith("<think>"):
        assert (whole.text, whole.thinking) == (text, "")


@pytest.mark.parametrize(
    ("begun", "inside"),
    [
        ("<think>\nLet me", True),
        ("<think>", True),
        ("<think>a</think><think>b", True),
        ("<think>a</think>\n\nHi", False),
        ("Write <think> before", False),
        ("Hi", False),
    ],
)
@pytest.mark.parametrize("as_tokens", [False, True])
def test_a_reply_that_goes_on_inside_a_thought_begins_with_the_rest_of_it(begun, inside, as_tokens):
    tokenizer = thinking_tokenizer(OPENS) if as_tokens else make_tokenizer(OPENS)
    chat = Chat(tokenizer)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": begun}]
    prompt = chat.prompt_ids(messages, continued=True)
    assert chat.decode(prompt).endswith(begun)
    ids = tokenizer(" think.</think>\n\nHi", add_special_tokens=False)["input_ids"]
    reply = ReplyText(chat.decode, chat.splitter(prompt, begun))
    reply.add(ids, final=True)
    expected = ("Hi", "think.") if inside else (chat.decode(ids), "")
    assert (reply.text, reply.thinking) == expected


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("thought", ["", " \n\n ", "hm"])
def test_an_answer_begins_with_its_first_word_after_an_empty_thought_as_after_another(inside, thought):
    chat = Chat(thinking_tokenizer(OPENS))
    reply = ("" if inside else "<think>") + f"{thought}</think> \n\n Hi"
    ids = chat.tokenizer(reply, add_special_tokens=False)["input_ids"]
    prompt = chat.tokenizer("<think>" if inside else "x", add_special_tokens=False)["input_ids"]
    parts = chat.splitter(prompt).follow(ids)
    assert chat.decode(ids[slice(*parts.answer)]) == "Hi"
    assert [chat.decode(ids[a:b]) for a, b in parts.thinking] == ([thought] if thought.strip() else [])


def test_a_thought_that_is_written_down_is_found_with_its_marker_or_after_an_opened_one():
    markers = THOUGHT_MARKERS[0]
    for text, answer, thoughts in (
        ("<think>a</think> b", "b", ["a"]),
        ("a</think>b", "b", ["a"]),
        ("<think>a", "", ["a"]),
        ("<think>a</think><think>b</think>c", "c", ["a", "b"]),
        ("c <think>", "c <think>", []),
        ("<think></think>c", "c", []),
    ):
        parts = split_text(text, markers)
        assert text[slice(*parts.answer)] == answer
        assert [text[a:b] for a, b in parts.thinking] == thoughts


def test_every_familys_replies_without_thoughts_are_all_answer():
    for name in FAMILIES:
        chat = Chat(family_tokenizer(name))
        ids = chat.tokenizer("hi you", add_special_tokens=False)["input_ids"]
        if name != "deepseek":  # it thinks before every answer
            assert chat.parts([{"role": "user", "content": "?"}], ids).answer == (0, len(ids))


@pytest.fixture(scope="module")
def thinking_space(tmp_path_factory, small_catalog):
    """A space that was mapped with thinking off."""
    out = tmp_path_factory.mktemp("thinking")
    engine = thinking_engine(id="tiny")
    return ps.map(engine, out, catalog=small_catalog, per_role=2, default_responses=12, max_new_tokens=6, layer=1)


@pytest.mark.long
def test_a_space_says_how_its_model_thought_and_warns_once_of_another_rule(thinking_space):
    assert thinking_space.meta["model"]["notes"]["thinking"] == "off"
    assert thinking_space.check_model(thinking_engine(id="tiny").info) is None
    warning = thinking_space.check_model(thinking_engine(id="tiny", thinking=True).info)
    assert "mapped with thinking off, tiny is used with thinking on" in warning
    assert thinking_space.check_model(thinking_engine(ALWAYS, id="tiny").info) is None


@pytest.mark.long
def test_a_map_of_a_model_that_thinks_keeps_answers_and_what_is_read_of_them(tmp_path, small_catalog):
    engine = thinking_engine(thinking=True, id="tiny")
    space = ps.map(
        engine,
        tmp_path,
        read="reply",
        catalog=small_catalog,
        per_role=4,
        default_responses=12,
        max_new_tokens=16,
        layer=1,
    )
    assert space.meta["model"]["notes"]["thinking"] == "on"
    assert space.thinking_options == {"thinking": True}  # what uses the space lets its model think, too
    with pytest.raises(RunMismatch):  # a run is not gone on with by the other rule
        ps.map(thinking_engine(id="tiny"), tmp_path, read="reply", catalog=small_catalog, per_role=4, max_new_tokens=16)
    run = Run(tmp_path)
    rows = [row for shard in run.done() for row in run.read(shard).to_pylist()]
    assert any(row["tokens"] < len(row["token_ids"]) for row in rows)
    for row in rows:
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        parts = engine.chat.parts([*system, {"role": "user", "content": row["user"]}], row["token_ids"])
        assert row["tokens"] == parts.answer[1] - parts.answer[0]
        assert row["text"] == engine.chat.decode(row["token_ids"][slice(*parts.answer)]).lstrip()


@pytest.mark.long
@pytest.mark.parametrize("span", ["thinking", "all"])
def test_a_map_along_thoughts_sums_what_a_plain_loop_reads(tmp_path, small_catalog, span):
    engine, how = thinking_engine(thinking=True, id="tiny"), {"catalog": small_catalog, "keep": "sums", "blocks": 4}
    how |= {"questions": 12}
    design = {"per_role": 4, "default_responses": 12, "max_new_tokens": 16, "layer": 1}
    space = ps.map(engine, tmp_path, read="reply", span=span, judge="none", **how, **design)
    run, roles, block_of = Run(tmp_path), [r.role for r in load_catalog(small_catalog).roles], blocks_of(12, 4, 0)
    assert run.manifest()["config"]["span"] == space.span == ps.PersonaSpace.load(tmp_path).span == span
    counted, cut_short, summed = 0, 0, {}
    for shard in run.done():
        for row in run.read(shard).to_pylist():
            system = [{"role": "system", "content": row["system"]}] if row["system"] else []
            ids, prompt = row["token_ids"], engine.chat.prompt_ids([*system, {"role": "user", "content": row["user"]}])
            thoughts, answer = expected_parts(engine, ids, inside=True)
            start, end = thoughts if span == "thinking" else (0, len(ids))
            assert row["tokens"] == end - start
            cut_short += start < end and answer[0] == answer[1]
            if start < end and row["text"]:
                counted += 1
                of = (["default", *roles].index(row["role"]), block_of[row["question"]])
                mean = plain(engine, prompt + ids[:end], len(prompt) + start).double()
                summed[of] = summed.get(of, 0) + mean
    source = FromSums(Sums(run, tmp_path / "sums", 1 + len(roles), block_of))
    cells = Cells.counted((), source.n, block_of)
    assert source.n.sum() == counted > 12
    assert cut_short > 0  # a thought that no answer follows counts for nobody
    for of, total in zip(zip(cells.role, cells.block, strict=True), source.sums(cells, slice(0, 3)), strict=False):
        assert torch.allclose(total, summed.pop(of), atol=1e-4)
    assert not summed


def test_a_map_along_thoughts_is_refused_where_there_are_none(tmp_path, small_catalog):
    how = {"catalog": small_catalog, "span": "thinking"}
    with pytest.raises(UsageError, match="span=thinking: tiny knows no thoughts: all of its replies is answer"):
        ps.map(TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny"), tmp_path, **how)
    with pytest.raises(UsageError, match="tiny answers without thinking here; turn thinking on"):
        ps.map(thinking_engine(id="tiny"), tmp_path, **how)
    with pytest.raises(UsageError, match="read=prompt asks for none"):
        ps.map(thinking_engine(thinking=True), tmp_path, read="prompt", **how)
    with pytest.raises(UsageError, match="span=thoughts"):
        ps.map(thinking_engine(thinking=True), tmp_path, catalog=small_catalog, span="thoughts")
    assert not [*tmp_path.iterdir()]


@pytest.mark.long
def test_what_uses_a_map_along_thoughts_reads_them_or_warns_once(tmp_path, small_catalog):
    engine = thinking_engine(thinking=True, id="tiny")
    design = {"per_role": 6, "default_responses": 64, "max_new_tokens": 12, "layer": 1}
    prompts_first = {"catalog": small_catalog, "prompts_per_role": 4, "default_prompts": 8, "judge": "none"}
    ps.map(engine, tmp_path, read="prompt", **prompts_first)
    space = ps.map(engine, tmp_path, read="both", span="thinking", **prompts_first, **design)
    assert (space.span, space.of("reply").span) == ("thinking", "thinking")
    again = ps.map(engine, tmp_path, read="both", **prompts_first, **design)  # the run knows what is read of it
    assert again.meta["made_from"] == space.meta["made_from"]
    with pytest.raises(RunMismatch, match="span"):
        ps.map(engine, tmp_path, read="both", span="answer", **prompts_first, **design)
    # Calibration replays what the map read.
    sample = calibrate.draw_sample(Run(tmp_path), default=16, roles=16, held_out=8)
    for reply, turn in zip(sample.roles, calibrate.replayed(engine, sample.roles, space.span, read=[1]), strict=True):
        prompt = engine.chat.prompt_ids(reply.messages)
        (start, end), _ = expected_parts(engine, list(reply.token_ids), inside=True)
        assert turn.tokens == end - start
        expected = plain(engine, [*prompt, *reply.token_ids[:end]], len(prompt) + start)[1:2]
        assert close(turn.activation, expected)
    # Who reads another part is told so, once.
    talk = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>a b</think>c d"})
    with pytest.warns(UserWarning, match="mapped with span=thinking, here span=answer is read") as told:
        ps.project(space, Transcript("talk", talk), engine=engine)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ps.project(space, Transcript("talk", talk), engine=engine, span="thinking")


def test_project_reads_answers_with_thoughts_beside_them_or_either_alone(thinking_space, tmp_path):
    engine = thinking_engine(id="tiny")
    messages = (
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "<think>a b</think>c d"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "e"},
    )
    talk = Transcript("talk", messages)
    by_span = {
        s: ps.project(thinking_space, talk, engine=engine, span=s)[0][0].turns for s in ("answer", "thinking", "all")
    }
    first, second = by_span["answer"]
    (thought,) = by_span["thinking"]
    assert (first.index, second.index, thought.index) == (1, 3, 1)
    assert (first.tokens, thought.tokens) == (3, 3)
    assert first.thinking.tokens == 3
    assert first.thinking.projection == pytest.approx(thought.projection, abs=1e-4)
    assert second.thinking is None
    assert "thinking" not in second.to_dict()
    assert by_span["all"][0].tokens == 7  # the closing marker stands between
    page = write_trajectories(tmp_path / "talk.html", thinking_space, [("talk", by_span["answer"])])
    assert "drift of thoughts" in page.read_text()
    assert re.findall(r"<tr>\s*<td[^>]*>(\d+)</td>", page.read_text()) == ["1", "2"]  # turns, as in the chart
    with pytest.raises(UsageError, match="span=x: expected one of answer, thinking, all"):
        ps.project(thinking_space, talk, engine=engine, span="x")


def test_project_says_that_a_conversation_was_given_a_neutral_beginning(thinking_space):
    engine = thinking_engine(USER_FIRST + "{# </think> #}", id="tiny")
    talk = Transcript("t", ({"role": "assistant", "content": "Welcome."}, {"role": "user", "content": "hi"}))
    (trajectory,), _ = ps.project(thinking_space, talk, engine=engine)
    assert [t.index for t in trajectory.turns] == [0]
    assert NEUTRAL_BEGINNING in trajectory.problem
