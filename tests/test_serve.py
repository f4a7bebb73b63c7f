"""The server as clients meet it: the real `openai` client and plain HTTP against a real uvicorn, on a small random model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import openai
import pytest
import torch

import personaspace as ps
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import UsageError
from personaspace.serve import hash_key, read_keys
from personaspace.serve.settings import check_exposure
from served import engine, serving, space

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def server(space, engine):
    with serving(space, engine, rows=8, max_tokens=64) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


@pytest.mark.long
def test_the_models_are_the_model_and_the_model_with_each_cap(client):
    names = [m.id for m in client.models.list()]
    assert names[:2] == ["tiny", "tiny:capped"]
    assert "tiny:default-p25@1:3" in names
    assert client.models.retrieve("tiny:capped").id == "tiny:capped"


def test_chat_streaming_and_not_says_what_respond_says(client, engine):
    prompt = ps.Prompt(tuple(HELLO), seed=0)
    (ours,) = engine.respond([prompt], ps.Sampling(temperature=0, max_new_tokens=12))
    whole = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=12)
    assert whole.choices[0].message.content == ours.text
    ended = ours.finish_reason == "stop"  # the token that ended it was made as well
    assert whole.usage.completion_tokens == len(ours.token_ids) + ended
    assert whole.usage.prompt_tokens == len(engine.chat.prompt_ids(HELLO))
    assert whole.choices[0].finish_reason == ours.finish_reason
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            temperature=0,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ours.text
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == ours.finish_reason


def test_several_replies_differ_by_seed_and_the_same_seed_repeats(client):
    def ask():
        made = client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=5, temperature=1, max_tokens=10)
        return [c.message.content for c in sorted(made.choices, key=lambda c: c.index)]

    first = ask()
    assert first == ask()
    assert len(set(first)) == 3


def test_log_probabilities_are_those_of_a_plain_pass(client, engine):
    made = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    ids = engine.chat.prompt_ids(HELLO)
    content = made.choices[0].logprobs.content
    (ours,) = engine.respond([ps.Prompt(tuple(HELLO))], ps.Sampling(temperature=0, max_new_tokens=5))
    assert len(content) == len(ours.token_ids)
    for k, token in enumerate(content):
        logits = engine.model(torch.tensor([[*ids, *ours.token_ids[:k]]])).logits[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(logits[ours.token_ids[k]]), abs=1e-3)
        assert [t.logprob for t in token.top_logprobs] == pytest.approx(logits.topk(3).values.tolist(), abs=1e-3)


def test_text_completions_take_text_and_token_ids(client, engine):
    text = client.completions.create(model="tiny", prompt="Once upon", temperature=0, max_tokens=6, logprobs=1)
    ids = engine.chat.text_ids("Once upon")
    tokens = client.completions.create(model="tiny", prompt=[ids, ids], temperature=0, max_tokens=6)
    assert [c.text for c in tokens.choices] == [text.choices[0].text] * 2
    assert len(text.choices[0].logprobs.tokens) == text.usage.completion_tokens


@pytest.mark.parametrize(
    "more", [{}, {"logprobs": 1}, {"max_tokens": 0, "logprobs": 0}], ids=["text", "scored", "prompt"]
)
def test_an_echo_is_streamed_as_it_is_told_at_once(client, more):
    asked = {"model": "tiny", "prompt": ["Once", "upon a"], "n": 2, "seed": 1, "max_tokens": 6, "echo": True, **more}
    whole = client.completions.create(**asked)
    parts = {c.index: [] for c in whole.choices}
    for chunk in client.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            parts[choice.index].append(choice)
    for choice in whole.choices:
        chunks = parts[choice.index]
        assert choice.text.startswith(asked["prompt"][choice.index // 2])
        assert "".join(c.text for c in chunks) == choice.text
        if "logprobs" in more:
            for name in ("tokens", "token_logprobs", "top_logprobs"):
                assert [v for c in chunks for v in getattr(c.logprobs, name)] == getattr(choice.logprobs, name)
            starts = [c.logprobs.text_offset[0] for c in chunks if c.logprobs.tokens]
            assert starts[0] == 0
            assert all(start >= len(asked["prompt"][choice.index // 2]) for start in starts[1:])


def test_an_echoed_prompt_comes_with_its_tokens_log_probabilities(client, engine):
    ids = engine.chat.text_ids("Once upon a time")
    for prompt in ("Once upon a time", ids):
        made = client.completions.create(
            model="tiny", prompt=prompt, temperature=0, max_tokens=1, logprobs=1, echo=True
        ).choices[0]
        assert made.text.startswith("Once upon a time")
        logits = engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert made.logprobs.token_logprobs[0] is None
        expected = [float(logits[k, t]) for k, t in enumerate(ids[1:])]
        assert made.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-3)
        best = [max(top.values()) for top in made.logprobs.top_logprobs[1 : len(ids)]]
        assert best == pytest.approx(logits[: len(ids) - 1].max(-1).values.tolist(), abs=1e-3)


def test_the_token_that_ends_a_text_completion_has_its_log_probability_too(space, engine):
    ids = engine.chat.text_ids("Once upon a time")
    first = int(engine.model(torch.tensor([ids])).logits[0, -1].argmax())
    ending = TransformersEngine(engine.model, engine.tokenizer, id="me/tiny", rows=4)
    ending.chat.end_ids = ending.chat.text_end_ids = frozenset({first})
    body = {"model": "tiny", "prompt": ids, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}
    with serving(space, ending) as (address, _):
        made = httpx.post(f"{address}/v1/completions", json=body, timeout=30).json()["choices"][0]
        chat = {"model": "tiny", "messages": HELLO, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
        whole = httpx.post(f"{address}/v1/chat/completions", json=chat, timeout=30).json()
    assert made["text"] == "Once upon a time"
    assert made["finish_reason"] == "stop"
    assert len(made["logprobs"]["tokens"]) == len(ids) + 1
    assert made["logprobs"]["tokens"][-1] == engine.tokenizer.decode([first])
    assert made["logprobs"]["token_logprobs"][-1] == max(made["logprobs"]["top_logprobs"][-1].values())
    ended = whole["choices"][0]["finish_reason"] == "stop"
    assert len(whole["choices"][0]["logprobs"]["content"]) == whole["usage"]["completion_tokens"] - ended


def test_a_text_completion_goes_on_where_a_transcripts_reply_would_end(space, engine):
    ids = engine.chat.text_ids("Once upon a time")
    first = int(engine.model(torch.tensor([ids])).logits[0, -1].argmax())
    base = TransformersEngine(engine.model, engine.tokenizer, id="me/tiny", rows=4)
    base.chat.end_ids |= {first}  # as a blank line is for a model without a template
    body = {"model": "tiny", "prompt": ids, "temperature": 0, "max_tokens": 1}
    with serving(space, base) as (address, _):
        made = httpx.post(f"{address}/v1/completions", json=body, timeout=30).json()
    assert made["choices"][0]["text"] == engine.tokenizer.decode([first])


def test_a_long_text_is_scored_in_parts_as_it_is_in_one(engine, space, monkeypatch):
    from personaspace.engines.transformers import scoring as module

    ids = engine.chat.text_ids("a text of some tokens, more than a part has")
    whole = engine.score(ids, 2, [space.cap()])
    monkeypatch.setattr(module, "SCORED_TOKENS", 7)
    parts = engine.score(ids, 2, [space.cap()])
    assert len(whole) == len(ids) - 1
    assert [lp for lp, _ in parts] == pytest.approx([lp for lp, _ in whole], abs=1e-4)
    assert [[t for t, _ in top] for _, top in parts] == [[t for t, _ in top] for _, top in whole]


def test_a_prompt_that_is_too_long_is_refused_before_it_is_scored(server):
    for words in (500, 5000):  # the longer one is told by its beginning
        body = {"model": "tiny", "prompt": "long " * words, "max_tokens": 1, "logprobs": 1, "echo": True}
        answer = httpx.post(f"{server}/v1/completions", json=body, timeout=30)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_a_stop_text_ends_a_reply_before_it_and_is_never_shown(client):
    whole = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=20)
    text = whole.choices[0].message.content
    stop = text[4:7]
    expected = text[: text.find(stop)]
    made = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=20, stop=stop)
    assert made.choices[0].message.content == expected
    assert made.choices[0].finish_reason == "stop"
    chunks = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=20, stop=[stop, "never"], stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    # The token that completes the stop text was drawn, and not read any more.
    assert made.persona["tokens_read"] == made.usage.completion_tokens - 1


def test_a_replys_persona_is_what_replay_reads_capped_and_not(client, engine, space):
    for model, persona in (
        ("tiny", {}),
        ("tiny:capped", {}),
        ("tiny", {"cap": "capped"}),
        ("tiny", {"cap": "capped+mirror+answer"}),
        ("tiny", {"cap": "capped+target+half-life=3"}),
        ("tiny", {"steer": [{"alpha": 0.5}]}),
    ):
        made = client.chat.completions.create(
            model=model, messages=HELLO, temperature=0, max_tokens=9, logprobs=True, extra_body={"persona": persona}
        )
        told = made.persona
        held = [space.hold(persona.get("cap", "capped"))] if model != "tiny" or "cap" in persona else []
        held += [space.steer(0.5)] if "steer" in persona else []
        (ours,) = engine.respond(
            [ps.Prompt(tuple(HELLO))], ps.Sampling(temperature=0, max_new_tokens=9), read=[1], interventions=held
        )
        assert made.choices[0].message.content == ours.text
        projection = float(space.project(ours.activation[0]))
        assert told["projection"] == pytest.approx(projection, abs=1e-3)
        assert told["drift"] == pytest.approx(space.drift(projection), abs=1e-3)
        assert told["capped_tokens"] == ours.touched
        nearest = space.nearest(ours.activation[0], 5)
        assert [name for name, _ in told["nearest"]] == [name for name, _ in nearest]
        assert [c for _, c in told["nearest"]] == pytest.approx([c for _, c in nearest], abs=1e-3)
        if held and held == [space.cap()]:
            assert told["projection"] >= dict(zip(space.cap().layers, space.cap().floor, strict=True))[1] - 1e-2


def test_tokens_come_with_their_projections_and_their_text(client, engine, space):
    chunks = list(
        client.chat.completions.create(
            model="tiny:capped",
            messages=HELLO,
            temperature=0,
            max_tokens=9,
            stream=True,
            extra_body={"persona": {"report": "token"}},
        )
    )
    tokens = [t for c in chunks for t in (getattr(c, "persona", None) or {}).get("tokens", [])]
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert [t["index"] for t in tokens] == list(range(len(tokens)))
    assert "".join(t["text"] for t in tokens) == text
    last = chunks[-1].persona
    mean = sum(t["projection"] for t in tokens) / len(tokens)
    assert mean == pytest.approx(last["projection"], abs=1e-3)
    assert sum(t["capped"] for t in tokens) == last["capped_tokens"]
    # On the way each chunk says where the reply lies so far: what a map shows that moves with it.
    running = [c.persona for c in chunks[:-1] if getattr(c, "persona", None)]
    assert [r["tokens_read"] for r in running] == list(range(1, len(running) + 1))
    for told in running:
        so_far = [t["projection"] for t in tokens[: told["tokens_read"]]]
        assert told["projection"] == pytest.approx(sum(so_far) / len(so_far), abs=1e-3)
        assert len(told["nearest"]) == 5
        assert len(told["place"]) == 2
    assert "alert" not in running[0]


def test_a_history_of_drifts_raises_the_alert_over_several_turns(client):
    def told(history):
        made = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=4, extra_body={"persona": {"history": history}}
        )
        return made.persona["alert"]

    assert told([0.0, 0.0, 90.0]) is True
    assert told([-90.0]) is False


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "gpt", "messages": HELLO}, 404, "does not exist"),
        ({"model": "tiny:lid", "messages": HELLO}, 404, "does not exist"),
        ({"model": "tiny", "messages": HELLO, "tools": [TOOL]}, 400, "Unsupported parameter: 'tools'"),
        ({"model": "tiny", "messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools.0.function"),
        ({"model": "tiny", "messages": HELLO, "response_format": {"type": "json_object"}}, 400, "'response_format'"),
        ({"model": "tiny", "messages": HELLO, "frequency_penalty": 3}, 400, "frequency_penalty"),
        ({"model": "tiny", "messages": HELLO, "logit_bias": {"300": 1}}, 400, "from 0 to 299"),
        ({"model": "tiny", "messages": HELLO, "logit_bias": {"hello": 1}}, 400, "logit_bias"),
        ({"model": "tiny", "messages": HELLO, "temperature": 9}, 400, "temperature"),
        ({"model": "tiny", "messages": HELLO, "n": 99}, 400, "99 replies"),
        ({"model": "tiny", "messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "tiny", "messages": [{"role": "user", "content": "long " * 500}]}, 400, "context is 512"),
        ({"model": "tiny", "messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role"),
        ({"model": "tiny", "messages": []}, 400, "messages"),
        ({"model": "tiny", "messages": HELLO * 300}, 400, "300 messages"),
        ({"model": "tiny", "messages": HELLO, "persona": {"cap": "lid"}}, 400, "no cap 'lid'"),
        ({"model": "tiny", "messages": HELLO, "persona": {"cap": ""}}, 400, "no cap ''"),
        ({"model": "tiny", "messages": HELLO, "persona": {"cap": "capped+loud"}}, 400, "'loud': expected target"),
        ({"model": "tiny", "messages": HELLO, "persona": {"steer": [{"direction": "gost", "alpha": 1}]}}, 400, "ghost"),
        ({"model": "tiny:capped", "messages": HELLO, "persona": {"cap": "all-p75@1:3"}}, 400, "persona.cap says"),
        ({"messages": HELLO}, 400, "model"),
        ("not json", 400, ""),
    ],
)
def test_what_cannot_be_met_is_refused_by_name_in_openais_shape(server, body, status, said):
    content = body if isinstance(body, str) else json.dumps(body)
    answer = httpx.post(
        f"{server}/v1/chat/completions", content=content, headers={"content-type": "application/json"}, timeout=30
    )
    assert answer.status_code == status
    error = answer.json()["error"]
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_what_asks_for_nothing_is_taken(client):
    made = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=2,
        tools=[],
        frequency_penalty=0,
        user="me",
        response_format={"type": "text"},
    )
    assert made.choices


def test_keys_limits_names_and_paths_are_kept(space, engine, tmp_path):
    with serving(space, engine, keys=(hash_key("secret"),), max_body=2000) as (address, _):
        assert httpx.get(f"{address}/healthz").status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/persona/space"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
                answer = httpx.get(address + path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
            assert httpx.get(address + path, headers={"authorization": "Bearer secret"}).status_code == 200
        key = {"authorization": "Bearer secret"}
        big = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 5000}]}
        assert httpx.post(f"{address}/v1/chat/completions", json=big, headers=key).status_code == 413
        headers = {**key, "content-type": "application/json"}
        chunked = httpx.post(f"{address}/v1/chat/completions", content=(b"x" * 500 for _ in range(20)), headers=headers)
        assert chunked.status_code == 413
    with serving(space, engine) as (address, _):
        assert httpx.get(f"{address}/v1/models", headers={"host": "evil.example"}).status_code == 400
        answer = httpx.get(f"{address}/v1/models", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
        for path in ("/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/none.js", "/etc/passwd"):
            assert httpx.get(address + path).status_code == 404
    with serving(space, engine, origins=("https://mine.example",)) as (address, _):
        answer = httpx.get(f"{address}/v1/models", headers={"origin": "https://mine.example"})
        assert answer.headers["access-control-allow-origin"] == "https://mine.example"
        # OpenAI's client for pages sends headers of its own, and waits as long as it is told to.
        assert answer.headers["access-control-expose-headers"] == "retry-after"
        asking = {"access-control-request-method": "POST", "access-control-request-headers": "x-stainless-os"}
        before = {"origin": "https://mine.example", **asking}
        assert httpx.options(f"{address}/v1/chat/completions", headers=before).status_code == 200


def test_a_model_from_a_folder_is_named_as_the_folder_is_however_its_path_is_written(space, engine):
    shown = TransformersEngine(engine.model, engine.tokenizer, id="./models/tiny/", rows=4)
    with serving(space, shown) as (address, _):
        assert httpx.get(f"{address}/v1/models").json()["data"][0]["id"] == "tiny"


def test_conversations_are_written_only_where_that_was_asked_for(space, engine, tmp_path):
    file = tmp_path / "record.jsonl"
    with serving(space, engine, record=file) as (address, _):
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 3}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).json()
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["replies"][0]["text"] == answer["choices"][0]["message"]["content"]


def test_a_reply_is_given_where_it_cannot_be_written_down_and_the_log_says_so_once(space, engine, tmp_path, caplog):
    with serving(space, engine, record=tmp_path / "gone" / "record.jsonl") as (address, _):
        for _ in range(2):
            body = {"model": "tiny", "messages": HELLO, "max_tokens": 3}
            assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).status_code == 200
    assert [r.getMessage() for r in caplog.records].count(caplog.records[0].getMessage()) == 1
    assert "conversations are not written: No such file or directory" in caplog.text


def test_metrics_count_tokens_requests_and_projections(space, engine):
    with serving(space, engine) as (address, _):
        body = {"model": "tiny:capped", "messages": HELLO, "max_tokens": 5, "temperature": 0}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).json()
        made = answer["usage"]["completion_tokens"]
        text = httpx.get(f"{address}/metrics").text
    assert f'personaspace_tokens_total{{kind="completion",model="tiny:capped"}} {float(made)}' in text
    assert 'personaspace_projection_count{model="tiny:capped"} 1.0' in text
    assert 'personaspace_time_to_first_token_seconds_count{model="tiny:capped"} 1.0' in text
    assert "personaspace_queue 0.0" in text


def test_a_conversation_is_projected(server, space, engine):
    messages = [*HELLO, {"role": "assistant", "content": "good day"}]
    told = httpx.post(f"{server}/v1/persona/project", json={"messages": messages}, timeout=30).json()
    ((turn,),) = engine.replay([messages], read=range(3))
    assert told["turns"][0]["projection"] == pytest.approx(float(space.project(turn.activation)), abs=1e-3)
    refused = httpx.post(f"{server}/v1/persona/project", json={"messages": HELLO}, timeout=30)
    assert refused.status_code == 400
    assert "no assistant turn" in refused.json()["error"]["message"]


def test_keys_are_read_from_a_file_of_digests_and_the_network_needs_one(tmp_path):
    (tmp_path / "keys").write_text(f"# mine\n{hash_key('a')}  # laptop\n\n{hash_key('b')}\n")
    assert read_keys(tmp_path / "keys") == (hash_key("a"), hash_key("b"))
    (tmp_path / "keys").write_text("plain-key\n")
    with pytest.raises(UsageError, match="line 1: expected a SHA-256 digest"):
        read_keys(tmp_path / "keys")
    for host in ("127.0.0.1", "::1", "localhost"):
        check_exposure(host, ())
    with pytest.raises(UsageError, match="give --api-key"):
        check_exposure("0.0.0.0", ())
    check_exposure("0.0.0.0", (hash_key("a"),))


def test_the_dashboard_asks_for_metrics_that_there_are(space, engine):
    with serving(space, engine) as (address, _):
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
        told = httpx.get(f"{address}/metrics").text
    dashboard = (Path(__file__).parent.parent / "deploy" / "grafana.json").read_text()
    names = set(re.findall(r"personaspace_\w+", dashboard))
    assert len(names) >= 7
    assert {n for n in names if n not in told} == set()
