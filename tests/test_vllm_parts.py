"""The parts of engine `vllm` that need no vLLM: what a request asks, clamps as tables, and which token counts where."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.engines.chat import Span
from personaspace.engines.protocol import ReadOptions
from personaspace.engines.vllm import plugin
from personaspace.engines.vllm.admission import InFlight, admit
from personaspace.engines.vllm.clamps import Rows, directions_of
from personaspace.engines.vllm.engine import VllmEngine
from personaspace.engines.vllm.layers import DeviceSums, detect_residual_form
from personaspace.engines.vllm.options import model_length, read_options
from personaspace.engines.vllm.readout import Readout
from personaspace.engines.vllm.request import FIELD, PersonaRequest, parse_request
from personaspace.engines.vllm.wire import pack, unpack
from personaspace.errors import ModelError, UsageError
from personaspace.model.interventions import Ablate, Add, Cap, Decaying, Intervention, Mirror, SetTo

HIDDEN, LAYERS, SLOTS = 6, 2, 3
CPU = torch.device("cpu")


def vector(seed: int) -> torch.Tensor:
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))


def moved(rows: Rows, row: int, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """The arithmetic of the compiled pass, in words of one syllable."""
    for k in range(rows.clamps):
        unit = rows.units[layer][rows.which[layer][row, k]]
        low, high, shift, gain = rows.bounds[layer][row, k]
        on = hidden @ unit
        hidden = hidden + (gain * (on.clamp(low, high) - on) + shift)[:, None] * unit
    return hidden


KINDS: list[tuple[Intervention, ...]] = [
    (Cap(vector(0), (0, 1), floor=0.5),),
    (Cap(vector(1), (1,), floor=-0.2, ceiling=0.3),),
    (Add(vector(2), 0, 1.5, norm=2.0),),
    (Add(vector(2), 0, -0.7, relative=False),),
    (Ablate(vector(3), 1),),
    (Add(vector(4), 1, 1.0, norm=1.0), Cap(vector(5), (1,), ceiling=0.0)),
    (SetTo(vector(6), (0, 1), target=(0.4, -2.0)),),
    (Mirror(vector(7), (1,), floor=0.3),),
]


@pytest.mark.parametrize("interventions", KINDS)
def test_a_row_does_what_the_interventions_do(interventions: tuple[Intervention, ...]) -> None:
    rows = Rows(LAYERS, HIDDEN, 8, 2, 4, CPU)
    hidden = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(9))
    row = rows.take(interventions)
    for layer in range(LAYERS):
        expected = hidden
        for i in interventions:
            if layer in i.layers_touched():
                expected = i.apply(expected, layer)
        assert torch.allclose(moved(rows, row, layer, hidden), expected, atol=1e-5)
        assert torch.equal(moved(rows, 0, layer, hidden), hidden)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_rows_in_use_stay_what_they_are(events: list[tuple[bool, int]]) -> None:
    rows, held = Rows(LAYERS, HIDDEN, 5, 2, 4, CPU), []
    hidden = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(9))
    for take, k in events:
        if take:
            try:
                held.append((KINDS[k], rows.take(KINDS[k])))
            except UsageError:
                assert len({i[0].key for i, _ in held}) >= 2
        elif held:
            rows.give_back(held.pop(k % len(held))[1])
        for interventions, row in held:
            for layer in range(LAYERS):
                expected = hidden
                for i in interventions:
                    if layer in i.layers_touched():
                        expected = i.apply(expected, layer)
                assert torch.allclose(moved(rows, row, layer, hidden), expected, atol=1e-5)


def run(readout: Readout, order: list[str], scheduled: list[int], computed: dict[str, int], ids: torch.Tensor) -> None:
    """A pass in which the token at position p of any request has the stream p at layer 0, 2p at layer 1."""
    readout.step(order, scheduled, computed, ids)
    at = torch.cat([torch.arange(computed[i], computed[i] + n) for i, n in zip(order, scheduled, strict=True)]).float()
    s = readout.sums
    s.clamping = True
    for layer in range(LAYERS):
        stream = (at * (layer + 1))[:, None].expand(-1, HIDDEN).contiguous()
        s.note(stream / 2, stream / 2, (at % 2 == 0).float() * layer, layer)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_token_of_a_reply_counts_once_whatever_is_computed_again(data: st.DataObject) -> None:
    readout = Readout(Rows(LAYERS, HIDDEN, 8, 1, 4, CPU), DeviceSums(LAYERS, HIDDEN, SLOTS, 64, CPU))
    readout.sums.project, readout.sums.direction[0] = 1, 1.0
    each = data.draw(st.booleans())
    prompts = {f"r{k}": data.draw(st.integers(1, 6)) for k in range(5)}
    computed = dict.fromkeys(prompts, 0)
    total = {id: p + data.draw(st.integers(1, 8)) for id, p in prompts.items()}
    for id, p in prompts.items():
        readout.begin(id, PersonaRequest(layers=(0, 1), key=id, project=each), p)
    for _ in range(40):
        waiting = [id for id in prompts if computed[id] < total[id]]
        if not waiting:
            break
        for id in waiting:
            if data.draw(st.integers(0, 9)) == 0:  # put off: all of it, or but for what a cache holds
                computed[id] = data.draw(st.integers(0, computed[id]))
        order = data.draw(st.permutations(waiting))[:SLOTS]
        scheduled = [data.draw(st.integers(1, min(5, total[id] - computed[id]))) for id in order]
        run(readout, order, scheduled, computed, torch.full((sum(scheduled),), 7))
        for id, n in zip(order, scheduled, strict=True):
            computed[id] += n
    readings = unpack(pack({id: readout.take(id) for id in prompts}))
    for id, p in prompts.items():
        far = max(computed[id], 0)
        reading = readings[id]
        read = np.arange(p, p + int(reading.tokens[0]))
        assert p + int(reading.tokens[0]) >= far
        assert p + int(reading.tokens[0]) <= total[id]
        if len(read):
            assert reading.activation[0, 1].tolist() == pytest.approx([2 * read.mean()] * HIDDEN)
            assert int(reading.touched[0]) == int((read % 2 == 0).sum())
        if each:
            assert reading.each is not None
            assert reading.each.tolist() == [(2 * read).tolist(), (read % 2 == 0).tolist()]
        else:
            assert reading.each is None
    for id in prompts:
        readout.end(id)
    assert sorted(readout._free) == list(range(SLOTS))
    readout.clear_tables()
    assert (readout.sums.slot == SLOTS).all()


def test_a_token_that_ends_the_reply_does_not_count() -> None:
    readout = Readout(Rows(LAYERS, HIDDEN, 8, 1, 4, CPU), DeviceSums(LAYERS, HIDDEN, SLOTS, 64, CPU))
    readout.sums.project, readout.sums.direction[0] = 0, 1.0
    readout.begin("a", PersonaRequest(key="a", project=True), 2, stop_tokens=[5])
    run(readout, ["a"], [4], {"a": 0}, torch.tensor([1, 1, 7, 5]))
    reading = unpack(pack({"a": readout.take("a")}))["a"]
    assert reading.tokens.tolist() == [1]
    assert reading.each is not None
    assert reading.each[0].tolist() == [2.0]


def test_none_of_many_tokens_that_end_the_reply_counts_and_more_are_refused() -> None:
    readout = Readout(Rows(LAYERS, HIDDEN, 8, 1, 4, CPU), DeviceSums(LAYERS, HIDDEN, SLOTS, 64, CPU))
    for id, stop_tokens in (("a", range(10, 60)), ("b", [7])):
        readout.begin(id, PersonaRequest(key=id, layers=(0,)), 1, stop_tokens)
    ids = torch.tensor([1, 5, 59, 1, 5, 59])
    run(readout, ["a", "b"], [3, 3], {"a": 0, "b": 0}, ids)
    readings = unpack(pack({id: readout.take(id) for id in ("a", "b")}))
    assert [readings[id].tokens.tolist() for id in ("a", "b")] == [[1], [2]]
    params = SimpleNamespace(extra_args={FIELD: {}}, n=1, stop_token_ids=list(range(1025)))
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            data_parallel_size=1,
            use_ubatching=False,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        speculative_config=None,
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
    )
    with pytest.raises(UsageError, match="1025 stop tokens; at most 1024"):
        admit(SimpleNamespace(sampling_params=params, prompt_token_ids=[1]), config, {})


def test_a_reading_is_looked_at_on_the_way_or_begun_anew() -> None:
    readout = Readout(Rows(LAYERS, HIDDEN, 8, 1, 4, CPU), DeviceSums(LAYERS, HIDDEN, SLOTS, 64, CPU))
    readout.sums.project, readout.sums.direction[0] = 1, 1.0
    for id in ("continue", "reset"):
        readout.begin(id, PersonaRequest(layers=(1,), key=id, project=True), 2)
    seen = []
    for start, n in ((0, 4), (4, 1), (5, 3)):
        run(readout, ["continue", "reset"], [n, n], {"continue": start, "reset": start}, torch.full((2 * n,), 7))
        seen.append(
            unpack(pack({"continue": readout.take("continue", "continue"), "reset": readout.take("reset", "reset")}))
        )
    values = {
        mode: [r[mode].each[0].tolist() for r in seen if r[mode].each is not None] for mode in ("continue", "reset")
    }
    assert values["continue"] == values["reset"] == [[4.0, 6.0], [8.0], [10.0, 12.0, 14.0]]
    assert [float(r["continue"].activation[0, 0, 0]) for r in seen] == [5.0, 6.0, 9.0]
    assert [float(r["reset"].activation[0, 0, 0]) for r in seen] == [5.0, 8.0, 12.0]
    run(readout, ["continue"], [1], {"continue": 8}, torch.full((1,), 7))
    readout.end("continue")
    readout.end("reset")
    last = [unpack(pack({"continue": readout.take("continue", "continue")}))["continue"] for _ in range(2)]
    assert [r.each.tolist() for r in last if r.each is not None] == [[[16.0], [1.0]], [[], []]]
    assert not readout.take("reset").token_values.numel()  # type: ignore[union-attr]
    assert int(unpack(pack({"continue": readout.take("continue")}))["continue"].tokens) == 7


def test_alphas_of_one_direction_share_its_place() -> None:
    names = {d for a in (0.1, 0.7, -1.3) for d in directions_of([Add(vector(2), 0, a, norm=2.0)])}
    assert len(names) == 1


def test_workers_forget_the_interventions_that_were_longest_not_asked_for() -> None:
    registry, at_workers = plugin.InterventionRegistry(capacity=3), set()
    ways = [Cap(vector(k), (0,), floor=1.0) for k in range(5)]
    for k in (0, 1, 2, 0, 3, 4):
        definitions = registry.unsent([ways[k]])
        registry.mark_sent([ways[k]])
        for name, listed in json.loads(definitions or "{}").items():
            at_workers = at_workers | {name} if listed else at_workers - {name}
        assert ways[k].key in at_workers
    assert at_workers == {ways[k].key for k in (0, 3, 4)}
    assert at_workers == {key for key in plugin.NAMED if key in {w.key for w in ways}}


def test_results_that_nobody_fetches_take_so_much_memory_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaspace.engines.vllm.readout.MAX_RESULT_BYTES", 3 * HIDDEN * 4)
    readout = Readout(Rows(LAYERS, HIDDEN, 8, 1, 4, CPU), DeviceSums(LAYERS, HIDDEN, SLOTS, 64, CPU))
    for k in range(9):
        readout.begin(f"{k}", PersonaRequest(layers=(1,), key=f"{k}"), 2)
        run(readout, [f"{k}"], [4], {f"{k}": 0}, torch.full((4,), 7))
        readout.end(f"{k}")
    assert list(readout.done) == ["6", "7", "8"]
    assert readout.take("7") is not None
    assert readout._bytes == 2 * HIDDEN * 4


def test_ranges_of_a_prompt_are_read_apart() -> None:
    readout = Readout(Rows(LAYERS, HIDDEN, 8, 1, 4, CPU), DeviceSums(LAYERS, HIDDEN, SLOTS, 64, CPU))
    readout.begin("a", PersonaRequest(layers=(0,), key="a", spans=((1, 3), (3, 3), (4, 6))), 7)
    run(readout, ["a"], [5], {"a": 0}, torch.full((5,), 7))
    run(readout, ["a"], [2], {"a": 5}, torch.full((2,), 7))
    readout.end("a")
    reading = unpack(pack({"a": readout.take("a"), "b": readout.take("b")}))
    assert list(reading) == ["a"]
    assert reading["a"].tokens.tolist() == [2, 0, 2]
    assert reading["a"].activation[:, 0, 0].tolist() == [1.5, 0.0, 4.5]


def test_what_a_prompt_and_a_reply_get() -> None:
    rows = Rows(LAYERS, HIDDEN, 8, 1, 4, CPU)
    readout = Readout(rows, DeviceSums(LAYERS, HIDDEN, SLOTS, 64, CPU))
    both, reply = Cap(vector(0), (0,), floor=1.0), Cap(vector(0), (1,), floor=1.0, where="generated")
    readout.begin("a", PersonaRequest(interventions=(both, reply)), 3)
    run(readout, ["b", "a"], [2, 4], {"a": 1, "b": 0}, torch.full((6,), 7))
    row = readout.sums.row[:6].tolist()
    assert row[:2] == [0, 0]
    assert row[2] == row[3] != row[4] == row[5]
    assert 0 not in row[2:]
    run(readout, ["b"], [2], {"b": 2}, torch.full((2,), 7))
    assert not readout.sums.row.any()


def test_salts_tell_interventions_apart() -> None:
    everywhere, reply = Cap(vector(0), (0,), floor=1.0), Cap(vector(0), (0,), floor=1.0, where="generated")
    assert PersonaRequest().salt(5) == ""
    assert PersonaRequest(interventions=(everywhere,)).salt(5) == PersonaRequest(interventions=(everywhere,)).salt(6)
    assert PersonaRequest(interventions=(reply,)).salt(5) != PersonaRequest(interventions=(reply,)).salt(6)
    assert PersonaRequest(interventions=(everywhere,)).salt(5) != PersonaRequest(interventions=(reply,)).salt(5)


def test_an_ask_is_plain_json() -> None:
    cap = Cap(vector(0), (0, 1), floor=1.0)
    ask = parse_request(
        json.dumps({"read": "all", "interventions": [cap.to_dict(), "mild"]}), {"mild": [cap]}, LAYERS, HIDDEN
    )
    assert ask.layers == (0, 1)
    assert [i.key for i in ask.interventions] == [cap.key, cap.key]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ("{", "not JSON"),
        ([1], "expected an object"),
        ({"reed": 1}, "reed"),
        ({"read": [2]}, "layers from 0 to 1"),
        ({"read": True}, "read"),
        ({"interventions": "mild"}, "expected a list"),
        ({"interventions": ["mild"]}, "no intervention 'mild'"),
        ({"interventions": [3]}, "found int"),
        ({"interventions": [{"kind": "cap"}]}, "cap"),
        ({"spans": [[0, 4], [3, 5]]}, "spans"),
        ({"spans": [3]}, "spans"),
        ({"spans": []}, "a range at least"),
    ],
)
def test_a_wrong_ask_says_what_is_wrong(ask: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_request(ask, {}, LAYERS, HIDDEN, 9)


def test_a_conversation_without_a_reply_is_replayed_as_no_turns_and_is_not_sent() -> None:
    engine = VllmEngine.__new__(VllmEngine)
    engine.rows, engine.core = 4, None
    replayed = engine._replay_spans([Span((1, 2), ()), Span((1,), ())], [[], []], ReadOptions(layers=(0,)))
    assert list(replayed) == [[], []]


# -- vLLM's own options ---------------------------------------------------------------------------------------------


def test_vllms_options_are_read_as_its_engines_arguments():
    arguments = ["--max-model-len=4096", "--enforce-eager", "--no-enable-prefix-caching", "--quantization=fp8"]
    arguments += ["--gpu-memory-utilization=0.5", '--compilation-config={"mode": 3}', "--compilation-config.level=1"]
    assert read_options(arguments) == {
        "max_model_len": 4096,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "quantization": "fp8",
        "gpu_memory_utilization": 0.5,
        "compilation_config": {"mode": 3, "level": 1},
    }


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("max-model-len=4096", "expected an option of vLLM's, as --x=y"),
        ("--max-model=4096", "no such option; did you mean --max-model-len"),
        ("--trust-remote-code", "code of a model's own is never run"),
        ("--trust-remote-code=yes", "code of a model's own is never run"),
    ],
)
def test_what_is_no_option_of_vllms_engine_is_refused(argument, text):
    with pytest.raises(UsageError, match=text):
        read_options([argument], {"max_model_len", "trust_remote_code"})


def test_room_is_made_for_the_longest_conversation_rounded_up_as_far_as_the_model_goes(tiny_folder, tmp_path):
    assert model_length(129, tiny_folder) == 256
    assert model_length(700, tiny_folder) == 512
    assert model_length(700, tmp_path) == 768


def sampled(client: str, *directions: str, shared: tuple[str, ...] = ()) -> SimpleNamespace:
    """Parameters of a request as `admit` leaves them."""
    return SimpleNamespace(extra_args={"personaspace": {"uses": directions, "shared": list(shared), "client": client}})


def test_a_clients_own_directions_take_its_share_of_the_places_and_never_those_of_the_servers_caps() -> None:
    in_flight = InFlight(16)
    for k in range(4):
        in_flight.add(f"a{k}", sampled("a", f"3:own{k}"))
    with pytest.raises(UsageError, match="a client may use 4 different directions of its own at layer 3"):
        in_flight.add("a4", sampled("a", "3:own4"))
    in_flight.add("again", sampled("a", "3:own0"))  # the same one takes no other place
    in_flight.add("elsewhere", sampled("a", "2:own4"))
    for client in "bcd":
        for k in range(4 - (client == "d")):
            in_flight.add(f"{client}{k}", sampled(client, f"3:{client}{k}"))
    with pytest.raises(UsageError, match="as many as there are places beside the server's caps"):
        in_flight.add("e", sampled("e", "3:e"))
    in_flight.add("capped", sampled("e", "3:cap", shared=("3:cap",)))
    in_flight.add("capped too", sampled("a", "3:cap"))  # what is shared counts for nobody
    in_flight.remove("a1")
    in_flight.add("a4", sampled("a", "3:own4"))
    assert "a4" in in_flight.uses


def test_directions_of_one_request_count_each_and_one_that_is_refused_leaves_no_trace() -> None:
    in_flight = InFlight(4)
    in_flight.add("first", sampled("", "0:a", "0:b", "0:c"))
    with pytest.raises(UsageError, match="4 different directions are in use at layer 0"):
        in_flight.add("both", sampled("", "0:d", "0:e"))
    assert set(in_flight.uses) == set(in_flight.clients) == {"first"}
    with pytest.raises(UsageError, match="a client may use 1 different directions"):
        in_flight.add("own", sampled("a", "1:d", "1:e"))
    in_flight.add("one", sampled("", "0:d"))


def test_who_calls_the_engine_from_python_has_all_places() -> None:
    in_flight = InFlight(16)
    for k in range(16):
        in_flight.add(str(k), sampled("", f"0:{k}"))
    with pytest.raises(UsageError, match="16 different directions are in use at layer 0"):
        in_flight.add("16", sampled("", "0:16"))
    assert "16" not in in_flight.uses


@pytest.mark.parametrize(
    ("intervention", "said"),
    [
        (Decaying(Cap(vector(0), (0,), floor=0.5, where="generated"), 8.0), "Decaying is not known"),
        (SetTo(vector(0), (0,), target=0.5, where="answer"), "where=answer is not known"),
    ],
)
def test_what_no_row_can_hold_is_refused_by_name_before_anything_is_sent(intervention, said) -> None:
    with pytest.raises(UsageError, match=said):
        parse_request({"interventions": [intervention.to_dict()]}, {}, LAYERS, HIDDEN)


class FusedNorm(torch.nn.Module):
    """A final norm as vLLM has them: of the sum of what it is given, in the dtype of that."""

    def forward(self, hidden, residual=None):
        stream = hidden if residual is None else hidden + residual
        wide = stream.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(stream.dtype) * 3


class Returning(torch.nn.Module):
    """A layer that returns what it is told to."""

    def forward(self, parts):
        return parts


class Stacked(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Returning()])
        self.norm = FusedNorm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["pair", "first", "neither"])
def test_where_the_residual_stream_is_is_found_in_every_dtype(dtype, form):
    rng, model = torch.Generator().manual_seed(0), Stacked()
    # As in real models: a few numbers are hundreds of times as large as the rest, which rounding then moves by their ulp.
    size = torch.where(torch.arange(512) % 97 == 0, 60.0, 0.3)
    hidden, residual = ((torch.randn(64, 512, generator=rng) * size).to(dtype) for _ in range(2))

    def run_pass():
        model.layers[0]((hidden, residual))
        if form == "neither":
            model.norm(hidden.flip(-1))
        elif form == "pair":  # fused: summed in single precision before it is rounded
            model.norm((hidden.float() + residual.float()) * (1 + 2e-3 * torch.randn(64, 512, generator=rng)))
        else:
            model.norm(hidden.float() * (1 + 2e-3 * torch.randn(64, 512, generator=rng)))

    if form == "neither":
        with pytest.raises(ModelError, match="cannot find the residual stream in Stacked"):
            detect_residual_form(model, model.layers, run_pass)
        return
    detect_residual_form(model, model.layers, run_pass)
    assert vars(model.layers[0])["personaspace_pair"] is (form == "pair")
