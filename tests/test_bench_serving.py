"""`bench serve` against a small server of one's own: every figure is there, and what can't be measured is said."""

from __future__ import annotations

import pytest

from personaspace.bench import serving as bench
from personaspace.errors import UsageError
from served import engine, serving, space

__all__ = ["engine", "space"]


@pytest.mark.long
def test_every_figure_is_measured_by_the_address_alone(space, engine, monkeypatch):
    monkeypatch.setattr(bench, "CLIENTS", (1, 2))
    monkeypatch.setattr(bench, "TURNS", (2, 3))
    monkeypatch.setattr(bench, "STARTED", 2)
    monkeypatch.setattr(engine.chat, "end_ids", frozenset())
    with serving(space, engine, queue=8, max_tokens=100) as (address, _):
        server = bench.Server.at(f"{address}/v1/")
        assert (server.address, server.model) == (address, "tiny")
        measured = {what: (values, unit) for what, values, unit in bench.figures(server, 3, 20, 2)}
    assert list(measured) == [
        "1 client",
        "2 clients",
        "first token, turn 2",
        "first token, turn 3",
        "first token, turn 3 / turn 2",
        "usual gap of a stream",
        "its longest beside a long prompt / usual",
        "first token of the long prompt",
    ]
    assert all(value > 0 for values, _ in measured.values() for value in values)
    assert [len(measured[f"first token, turn {t}"][0]) for t in (2, 3)] == [2, 2]


def test_a_server_that_is_not_there_and_one_that_does_not_start_are_told_in_one_line():
    with pytest.raises(UsageError, match="expected the address of an OpenAI-compatible server"):
        bench.Server.at("http://127.0.0.1:9")
    with (
        pytest.raises(UsageError, match=r"json\.tool here does not start: .*error:"),
        bench.running("json.tool", "here"),
    ):
        pass
