"""Directions beside the axis, alerts by name and what they do, on a real server: told, counted, acted on, and sent."""

from __future__ import annotations

import json
from contextlib import contextmanager

import httpx
import pytest
import torch

import personaspace as ps
from personaspace.serve.settings import WatchSettings
from personaspace.space import PersonaSpace, layout
from served import engine, serving
from test_webhook import SECRET, receiver, until

HELLO = [{"role": "user", "content": "hello"}]
ASKED = {"model": "tiny", "messages": HELLO, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
FAR = [50.0, 50.0]
MINE = 'a "name"\nof a file'


@pytest.fixture(scope="module")
def own(engine):
    """A space by hand, about where the model's replies lie: nothing here asks whether its figures are any good."""
    rng = torch.Generator().manual_seed(4)
    layers, hidden = engine.info.layers, engine.info.hidden
    roles, traits = (torch.randn(n, layers, hidden, generator=rng) for n in (4, 2))
    default = torch.randn(layers, hidden, generator=rng)
    axis = default - roles.mean(0)
    (reply,) = engine.respond([ps.Prompt(tuple(HELLO))], ps.Sampling(temperature=0, max_new_tokens=6), read=[1])
    mean = reply.activation[0].float()
    place = float(mean @ (axis[1] / axis[1].norm()))
    meta = {
        "format": layout.FORMAT,
        "model": {"id": "me/tiny", "layers": layers, "hidden": hidden},
        "layer": 1,
        "roles": ["bard", "ghost", "poet", "tutor"],
        "traits": ["sarcastic", "ghost"],
        "caps": {"capped": {"layers": [1, 2], "floors": [place + 5, place + 5]}},
    }
    tensors = {
        "role_vectors": roles,
        "trait_vectors": traits,
        "default_vector": default,
        "axis": axis,
        "reply_mean": mean,
        "reply_factor": torch.randn(3, hidden, generator=rng),
        "reply_rest": torch.tensor(0.5),
        "default_moments": torch.tensor([[place] * layers, [1.0] * layers]),
    }
    return PersonaSpace(meta, tensors).with_own({MINE: torch.arange(float(hidden))})


@contextmanager
def watched(space, engine, **options):
    with (
        serving(space, engine, watch=WatchSettings(**options), rows=4) as (address, _),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client(own, engine):
    with watched(own, engine, read=("ghost",), alerts=(f"own:{MINE}>3", "axis<-2")) as opened:
        yield opened


def ask(client, persona=None, **more):
    answer = client.post("/v1/chat/completions", json={**ASKED, **more, **({"persona": persona} if persona else {})})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_reply_is_read_along_what_is_asked_for_and_else_along_the_servers_own_choice(client, own):
    by_default = ask(client)["persona"]["along"]
    assert list(by_default) == ["role:ghost", f"own:{MINE}"]
    wanted = own.roles[0]
    along = ask(client, {"read": ["axis", wanted]})["persona"]
    assert list(along["along"]) == ["axis", f"role:{wanted}", f"own:{MINE}"]
    # The axis read as a direction is the axis: its shift is the drift, the other way round.
    assert along["along"]["axis"]["projection"] == pytest.approx(along["projection"], rel=1e-4)
    assert along["along"]["axis"]["shift"] == pytest.approx(-along["drift"], rel=1e-3)
    assert list(ask(client, {"read": []})["persona"]["along"]) == [f"own:{MINE}"]


def test_what_is_read_is_the_mean_of_the_answers_tokens_along_the_direction(client, own, engine):
    sampling = ps.Sampling(temperature=0, max_new_tokens=6)
    (reply,) = engine.respond([ps.Prompt(tuple(HELLO))], sampling, read=[own.layer])
    along = ask(client, {"read": ["ghost"]}, ignore_eos=False)["persona"]
    expected = float(reply.activation[0].float() @ own.direction("ghost"))
    assert along["tokens_read"] == reply.tokens
    assert along["along"]["role:ghost"]["projection"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("field", ["read", "histories"])
def test_a_name_that_is_none_is_refused_in_one_line_with_near_names(client, field):
    persona = {"read": ["ghots"]} if field == "read" else {"histories": {"ghots": [1.0]}}
    answer = client.post("/v1/chat/completions", json={**ASKED, "persona": persona})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == f"persona.{field}"
    assert "nearest: ghost" in error["message"]
    assert "\n" not in error["message"]


def test_no_more_directions_are_taken_than_can_be_told(client, own):
    names = [*own.directions] * 40
    answer = client.post("/v1/chat/completions", json={**ASKED, "persona": {"read": names[:33]}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "persona.read"


def test_an_alert_stands_after_turns_that_were_far_enough_and_is_told_by_its_name(client):
    name = f"own:{MINE}"
    calm = ask(client)["persona"]
    assert calm["alerts"] == {"axis": False, name: False}
    stands = ask(client, {"histories": {MINE: [500.0]}})["persona"]
    assert stands["alerts"][name]
    assert not stands["alert"]
    assert ask(client, {"history": FAR})["persona"]["alert"]


def test_the_space_says_which_directions_there_are_and_what_its_alerts_mean(client, own):
    described = client.get("/v1/persona/space").json()
    assert described["directions"] == own.directions
    assert described["read"] == ["role:ghost", f"own:{MINE}"]
    assert [a["name"] for a in described["alerts"]] == ["axis", f"own:{MINE}"]
    assert "normal along it" in described["alerts"][1]["is"]
    schema = client.get("/openapi.json").json()["components"]["schemas"]["Persona"]["properties"]
    assert set(schema["read"]["anyOf"][0]["items"]["enum"]) >= set(own.directions)


def test_metrics_are_of_what_the_server_was_started_with_alone_and_a_files_name_is_escaped(client):
    ask(client, {"read": ["axis"]})
    lines = client.get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("personaspace_along_count")]
    assert len(counted) == 2
    assert any('direction="role:ghost"' in line for line in counted)
    assert any(r'direction="own:a \"name\"\nof a file"' in line for line in counted)
    assert any(line.startswith("personaspace_shift_bucket") for line in lines)


def test_a_cap_that_waits_for_an_alert_holds_from_it_on_and_not_before(client):
    free, held = ask(client), ask(client, {"cap": "capped"})
    assert held["choices"] != free["choices"]
    waiting = ask(client, {"cap": "capped+alert", "history": [0.0]})
    assert waiting["choices"] == free["choices"]
    assert "acted" not in waiting["persona"]
    for persona in ({"cap": "capped+alert"}, {"on_alert": "cap"}):
        # It is not taken back: what a held reply's drift is says nothing of where the model would go.
        acted = ask(client, {**persona, "history": [*FAR, 0.0, 0.0]})
        assert acted["choices"] == held["choices"]
        assert acted["persona"]["acted"] == "cap"
    assert ask(client, {"on_alert": "tell", "history": FAR})["choices"] == free["choices"]
    unknown = client.post("/v1/chat/completions", json={**ASKED, "persona": {"cap": "nothing+alert"}})
    assert unknown.status_code == 400


def test_a_named_cap_holds_whatever_is_to_be_done_on_an_alert(client):
    held = ask(client, {"cap": "capped"})
    assert ask(client, {"cap": "capped", "on_alert": "cap"})["choices"] == held["choices"]
    assert ask(client, model="tiny:capped")["choices"] == held["choices"]


def test_a_conversation_is_ended_in_openais_shape_whole_and_streamed_and_as_a_response(client):
    persona = {"on_alert": "stop", "history": FAR}
    reply = ask(client, persona)
    (choice,) = reply["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", "")
    assert "alert" in choice["message"]["refusal"]
    assert reply["usage"]["completion_tokens"] == 0
    body = {**ASKED, "persona": persona, "stream": True}
    events = client.post("/v1/chat/completions", json=body).text.split("\n\n")
    chunk = json.loads(events[0].removeprefix("data: "))["choices"][0]
    assert chunk["finish_reason"] == "content_filter"
    assert chunk["delta"]["refusal"] == choice["message"]["refusal"]
    assert events[1] == "data: [DONE]"
    response = client.post("/v1/responses", json={"model": "tiny", "input": "hello", "persona": persona}).json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "content_filter"}
    text = client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "persona": persona}).json()
    assert text["choices"][0]["finish_reason"] == "content_filter"
    assert 'personaspace_acted_total{act="stop",model="tiny"}' in client.get("/metrics").text
    assert ask(client, {"on_alert": "stop", "history": [0.0]})["choices"][0]["finish_reason"] != "content_filter"


def test_a_receiver_is_told_of_an_alert_as_it_begins_and_of_nothing_that_was_said(own, engine):
    with (
        receiver() as (address, came),
        watched(
            own, engine, alerts=("axis<-2", f"own:{MINE}"), on_alert="cap", webhook=address, secret=SECRET
        ) as client,
    ):
        begun = ask(client, {"history": [0.0], "histories": {MINE: [500.0]}})
        # One that stood before has begun before.
        ask(client, {"histories": {MINE: [500.0, 500.0]}, "on_alert": "tell"})
        until(lambda: 'outcome="sent"} 1.0' in client.get("/metrics").text)
    ((_, body),) = came
    message = json.loads(body)
    assert message["type"] == "alert.begun"
    content = message["data"]
    assert set(content) == {"id", "model", "alerts", "turn", "tokens_read"}
    assert (content["id"], content["model"], content["turn"]) == (begun["id"], "tiny", 2)
    assert [a["name"] for a in content["alerts"]] == [f"own:{MINE}"]
    assert b"hello" not in body


def test_a_space_without_a_rule_acts_on_no_alert(engine, own):
    with watched(own, engine) as client:
        for persona in ({"on_alert": "stop"}, {"cap": "capped+alert"}):
            answer = client.post("/v1/chat/completions", json={**ASKED, "persona": persona})
            assert answer.status_code == 400
            assert "no rule for" in answer.json()["error"]["message"]
        schema = client.get("/openapi.json").json()["components"]["schemas"]["Persona"]["properties"]
        assert {"const": "tell"} in schema["on_alert"]["anyOf"]
