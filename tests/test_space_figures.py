"""What a space says of itself, and what a monitor says of turns, by plain loops over a small planted space."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from personaspace.errors import SpaceError, UsageError
from personaspace.holding import monitor
from personaspace.holding.monitor import AlertRule, Monitor
from personaspace.space import PersonaSpace, layout
from personaspace.space.certainty import Alike, by_layer
from personaspace.stats.forecast import spearman_brown

LAYERS, HIDDEN, LAYER, ROLES = 4, 6, 2, 9
NAMES = [f"role{k}" for k in range(ROLES)]


@pytest.fixture(scope="module")
def space() -> PersonaSpace:
    rng = np.random.default_rng(0)
    roles = rng.normal(size=(ROLES, LAYERS, HIDDEN)) * [3, 2, 1, 1, 1, 1]
    default = roles.mean(0) + np.array([7, 1, 0, 0, 0, 0])
    components, shares = [], []
    for layer in range(LAYERS):
        _, deviations, directions = np.linalg.svd(roles[:, layer] - roles[:, layer].mean(0), full_matrices=False)
        components.append(directions * np.sign(directions[0, 0]))
        shares.append(deviations**2 / (deviations**2).sum())
    arrays = {
        "role_vectors": roles,
        "default_vector": default,
        "axis": default - roles.mean(0),
        "components": np.array(components),
        "variance": np.array(shares),
        "residual_norm": np.linspace(8, 11, LAYERS),
        "default_moments": np.array([np.linspace(5, 8, LAYERS), np.linspace(0.5, 2, LAYERS)]),
        "quantiles_default": np.sort(rng.normal(size=(101, LAYERS)), axis=0),
        "axis_split_half": np.array([0.5, 0.8, 0.9, -0.1]),
        "order_split_half": np.array([0.2, 0.3, 0.4, 0.5]),
        "map_split_half": np.array([0.7, 0.6, 0.6, 0.5]),
        "split_half_factor": np.array([2.0, 3.0, 4.0, 2.0]),
        "separation": np.array([1.0, 2.0, 3.0, np.nan]),
        "role_reliability": np.array([np.nan, *np.linspace(0, 0.9, ROLES - 1)]),
        "role_interval": np.stack([np.arange(ROLES) - 1.0, np.arange(ROLES) + 1.0], 1),
        "cosine_error": np.full(ROLES, 0.12),
        "cosine_corrected": rng.uniform(-1, 1, ROLES),
    }
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    meta = {
        "format": layout.FORMAT,
        "model": {"id": "planted", "fingerprint": "f", "layers": LAYERS, "hidden": HIDDEN},
        "layer": LAYER,
        "roles": NAMES,
        "n_responses": 500,
        "seconds": {"responses": 60.0},
        "caps": {
            "capped": {"layers": [1, 3], "floors": [0.5, 1.5], "is": "planted"},
            "one": {"layers": [2], "floors": [2.5], "is": "planted"},
        },
    }
    return PersonaSpace(meta, {**tensors, "counts": torch.arange(ROLES) + 3})


def without(space: PersonaSpace, *names: str) -> PersonaSpace:
    return PersonaSpace(space.meta, {k: t for k, t in space.tensors.items() if k not in names})


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_projection_is_on_the_unit_axis_of_its_layer_whatever_stands_before(space):
    axis = space.tensors["axis"].numpy()
    activations = np.random.default_rng(1).normal(size=(3, 2, LAYERS, HIDDEN))
    for layer in (None, 0, 3):
        at = LAYER if layer is None else layer
        unit = axis[at] / np.linalg.norm(axis[at])
        told = space.project(torch.from_numpy(activations), layer).numpy()
        alone = space.project(torch.from_numpy(activations[:, :, at]), layer).numpy()
        for i in range(3):
            for j in range(2):
                assert told[i, j] == pytest.approx(activations[i, j, at] @ unit, abs=1e-5)
                assert alone[i, j] == pytest.approx(activations[i, j, at] @ unit, abs=1e-5)
    one = torch.from_numpy(activations[0, 0, LAYER])
    assert float(space.project(one)) == pytest.approx(
        activations[0, 0, LAYER] @ axis[LAYER] / np.linalg.norm(axis[LAYER])
    )
    with pytest.raises(SpaceError, match="activations of 5 numbers; this space's model has 6"):
        space.project(torch.zeros(LAYERS, 5))
    with pytest.raises(SpaceError):
        space.project(one, LAYERS)


def test_the_nearest_roles_are_those_of_highest_cosine_from_the_mean_role(space):
    roles = space.tensors["role_vectors"].numpy()
    activation = np.random.default_rng(2).normal(size=(LAYERS, HIDDEN)).astype(np.float32)
    for layer in (None, 1):
        at = LAYER if layer is None else layer
        mean = roles[:, at].mean(0)
        cosines = [cosine(roles[k, at] - mean, activation[at] - mean) for k in range(ROLES)]
        order = np.argsort(cosines)[::-1]
        for k in (1, 3, 50):
            told = space.nearest(torch.from_numpy(activation), k, layer)
            assert [name for name, _ in told] == [NAMES[i] for i in order[:k]]
            assert [c for _, c in told] == pytest.approx([cosines[i] for i in order[:k]], abs=1e-5)
        assert space.nearest(torch.from_numpy(activation[at]), 3, layer) == space.nearest(
            torch.from_numpy(activation), 3, layer
        )
    assert len(space.nearest(torch.from_numpy(activation))) == 5
    assert [c for _, c in space.nearest(space.centred()[1])] == [0.0] * 5, "the mean role itself is near nobody"


def test_an_activation_of_the_other_reading_is_set_about_that_readings_mean(space):
    default, axis = torch.full((LAYERS, HIDDEN), 2.0), torch.full((LAYERS, HIDDEN), 0.5)
    tensors = {**space.tensors, "prompt.default_vector": default, "prompt.axis": axis}
    both = PersonaSpace({**space.meta, "other": {"prompt": {"reading": "prompt", "layer": LAYER}}}, tensors)
    assert torch.equal(both.centre(reading="prompt"), torch.full((HIDDEN,), 1.5))
    assert torch.equal(both.centre(), space.centred()[1])
    assert torch.equal(space.centre(reading="prompt"), space.centred()[1]), "it does not hold it"
    activation = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3))
    told = dict(both.nearest(activation, ROLES, reading="prompt"))
    for name, vector in zip(NAMES, both.centred()[0], strict=True):
        assert told[name] == pytest.approx(cosine(vector.numpy(), (activation - 1.5).numpy()), abs=1e-5)
    assert dict(both.nearest(activation, ROLES)) != told


def test_a_named_cap_has_its_layers_unit_axes_and_floors(space):
    cap = space.cap("capped", where="generated")
    assert (cap.layers, cap.floor, cap.ceiling, cap.where) == ((1, 3), (0.5, 1.5), None, "generated")
    for row, layer in enumerate(cap.layers):
        axis = space.tensors["axis"][layer]
        assert torch.allclose(cap.vector[row], axis / axis.norm())
    assert space.cap() == space.cap("capped")
    assert space.cap().where == "all"
    assert space.hold("one+generated") == space.cap("one", "generated")
    with pytest.raises(SpaceError, match="it has capped, one"):
        space.cap("other")
    with pytest.raises(SpaceError, match="personaspace calibrate"):
        PersonaSpace({**space.meta, "caps": {}}, space.tensors).cap()


def test_a_drift_is_in_the_defaults_deviations_of_its_layer(space):
    for layer in (None, 0, 3):
        mean, std = space.tensors["default_moments"][:, LAYER if layer is None else layer].tolist()
        assert space.drift(1.25, layer) == pytest.approx((mean - 1.25) / std)
    location = space.read(space.tensors["default_vector"], layer=1)
    axis = space.tensors["axis"][1]
    on = float(space.tensors["default_vector"][1] @ axis / axis.norm())
    mean, std = space.tensors["default_moments"][:, 1].tolist()
    assert (location.projection, location.drift) == pytest.approx((on, (mean - on) / std))
    assert location.nearest == space.nearest(space.tensors["default_vector"], 5, 1)


def test_a_model_of_another_shape_is_refused_and_each_difference_gets_its_sentence(space):
    def model(**values):
        described = {
            "id": "other",
            "layers": LAYERS,
            "hidden": HIDDEN,
            "fingerprint": "f",
            "notes": {"thinking": "off"},
        }
        return SimpleNamespace(**described | values)

    assert space.check_model(model()) is None
    told = space.check_model(model(fingerprint="g", notes={"thinking": "on"}), "all")
    assert "other weights than other's (fingerprint f, found g)" in told
    assert "thinking off" in told
    assert "span=answer, here span=all" in told
    assert told.count("; ") >= 2
    unknown = PersonaSpace({**space.meta, "model": {"id": "planted"}}, space.tensors)
    assert "fingerprint unknown, found f" in unknown.check_model(model())
    for layers, hidden in ((LAYERS + 1, HIDDEN), (LAYERS, HIDDEN + 1)):
        with pytest.raises(SpaceError, match=rf"for 4 layers of 6 numbers; other has {layers} of {hidden}"):
            space.check_model(model(layers=layers, hidden=hidden))


def alike_by_loop(space: PersonaSpace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    roles = space.role_vectors_at().double().numpy()
    centred = roles - roles.mean(0)
    raw = np.array([[cosine(a, b) for b in centred] for a in centred])
    off = [raw[i, j] for i in range(ROLES) for j in range(ROLES) if i != j]
    error = space.tensors["cosine_error"].double().numpy()
    variance = [[(error[i] ** 2 + error[j] ** 2) / 2 for j in range(ROLES)] for i in range(ROLES)]
    signal = max(np.var(off) - np.mean([variance[i][j] for i in range(ROLES) for j in range(ROLES) if i != j]), 0)
    shrink = np.array([[signal / (signal + variance[i][j]) for j in range(ROLES)] for i in range(ROLES)])
    return raw, shrink, np.array(variance)


def test_roles_that_stand_out_are_beyond_what_chance_gives_the_nearest_of_all(space):
    from statistics import NormalDist

    raw, shrink, variance = alike_by_loop(space)
    beyond = NormalDist().inv_cdf(1 - 0.05 / (ROLES - 1))
    seen = 0
    for i, name in enumerate(NAMES):
        others = sorted((j for j in range(ROLES) if j != i), key=lambda j: -raw[i, j] * shrink[i, j])
        for k in (3, 50):
            clear, rest = space.neighbours(name, k)
            expected = [j for j in others[:k] if raw[i, j] > beyond * variance[i, j] ** 0.5]
            assert [role for role, _, _ in clear] == [NAMES[j] for j in expected]
            assert rest == min(k, ROLES - 1) - len(expected)
            for (_, value, (low, high)), j in zip(clear, expected, strict=True):
                half = 1.96 * (shrink[i, j] * variance[i, j]) ** 0.5
                centre = raw[i, j] * shrink[i, j]
                assert (value, low, high) == pytest.approx((centre, centre - half, centre + half), abs=1e-5)
                seen += 1
        similar = space.similar(name, 4)
        assert [role for role, _ in similar] == [NAMES[j] for j in others[:4]]
        assert [c for _, c in similar] == pytest.approx([raw[i, j] * shrink[i, j] for j in others[:4]], abs=1e-5)
    assert seen
    assert len(space.similar(NAMES[0], 50)) == ROLES - 1
    assert len(space.similar(NAMES[0])) == 5
    plain = without(space, "cosine_error")
    assert plain.similar(NAMES[0], 1)[0][1] == pytest.approx(max(raw[0, 1:]), abs=1e-5)
    with pytest.raises(SpaceError, match="cosine_error"):
        plain.neighbours(NAMES[0])
    with pytest.raises(SpaceError, match="nobody"):
        space.similar("nobody")


def test_where_cosines_vary_no_more_than_their_errors_all_are_nothing():
    centred = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    alike = Alike.of(centred, torch.full((12,), 0.9))
    off = ~np.eye(12, dtype=bool)
    assert not alike.clear.any()
    assert (alike.cosine[off] == 0).all()
    assert (alike.half == 0).all()
    unknown = Alike.of(centred, torch.full((12,), float("nan")))
    assert not unknown.clear.any()
    assert np.abs(unknown.cosine[off]).max() > 0.1
    assert (unknown.half == 0).all()


def test_components_and_where_axis_and_default_lie_on_them(space):
    told = space.axis_pc1()
    for layer in range(LAYERS):
        axis, first = space.tensors["axis"][layer].numpy(), space.tensors["components"][layer, 0].numpy()
        assert told[layer] == pytest.approx(cosine(axis, first), abs=1e-5)
    directions, shares = space.components_at(1)
    assert torch.equal(directions, space.tensors["components"][1])
    assert torch.equal(shares, space.tensors["variance"][1])
    anew = without(space, "components", "variance")
    directions, shares = anew.components_at()
    for k in range(3):
        same = cosine(directions[k].numpy(), space.tensors["components"][LAYER, k].numpy())
        assert abs(same) == pytest.approx(1, abs=1e-3)
    assert shares[:3].tolist() == pytest.approx(space.tensors["variance"][LAYER, :3].tolist(), abs=1e-3)
    with pytest.raises(SpaceError, match="components"):
        anew.axis_pc1()
    given_cosines = PersonaSpace({**space.meta, "axis_pc1": [0.1] * LAYERS}, space.tensors)
    assert given_cosines.axis_pc1() == [0.1] * LAYERS
    roles = space.role_vectors_at().numpy()
    for component in range(3):
        direction = space.tensors["components"][LAYER, component].numpy()
        on = (roles - roles.mean(0)) @ direction
        default = float((space.tensors["default_vector"][LAYER].numpy() - roles.mean(0)) @ direction)
        low, high = min(*on, default), max(*on, default)
        from_top = (high - default) / (high - low)
        expected = from_top if component == 0 else min(from_top, 1 - from_top)
        assert space.place_on_pc(component) == pytest.approx(expected, abs=1e-5)


def test_reliabilities_are_the_wholes_by_spearman_brown_and_never_under_nothing(space):
    assert space.axis_reliability() == pytest.approx([2 / 3, 1.6 / 1.8, 1.8 / 1.9, 0.0])
    layers = by_layer(space.tensors)
    factor = space.tensors["split_half_factor"].double().numpy()
    for name in ("order", "map"):
        half = space.tensors[f"{name}_split_half"].double().numpy()
        assert layers[name] == pytest.approx(spearman_brown(half, factor).tolist(), abs=1e-6)
    assert layers["axis"] == pytest.approx(
        spearman_brown(space.tensors["axis_split_half"].double().numpy(), 2.0).tolist(), abs=1e-6
    )
    assert by_layer({}) == {"axis": None, "order": None, "map": None}


def test_a_summary_says_each_figure_of_the_spaces_layer(space):
    told = space.summary()
    assert (told["model"], told["layers"], told["hidden_size"], told["layer"]) == ("planted", LAYERS, HIDDEN, LAYER)
    assert (told["n_roles"], told["n_responses"]) == (ROLES, 500)
    assert told["axis_pc1_cosine"] == pytest.approx(space.axis_pc1()[LAYER], abs=1e-6)
    shares = space.tensors["variance"][LAYER].tolist()
    assert told["variance_explained"] == shares
    assert told["components_for_70pct"] == next(k for k in range(1, 7) if sum(shares[:k]) >= 0.7)
    q = space.tensors["quantiles_default"][:, LAYER].tolist()
    mean, std = space.tensors["default_moments"][:, LAYER].tolist()
    expected = {"mean": mean, "std": std, "p01": q[1], "p25": q[25], "p50": q[50], "p75": q[75]}
    assert told["default_projection"] == pytest.approx(expected)
    assert told["default_on_pc1"] == pytest.approx(space.place_on_pc(0))
    assert told["axis_split_half"] == pytest.approx(0.9)
    assert told["axis_reliability"] == pytest.approx(1.8 / 1.9)
    assert told["separation"] == pytest.approx(3.0)
    assert told["left_out"] == {}
    assert told["caps"] == space.caps
    order_reliability = float(spearman_brown(np.array([0.4]), np.array([4.0]))[0])
    assert told["reliability"]["order"] == pytest.approx(order_reliability, abs=1e-6)
    assert told["order_known"] == (order_reliability >= 0.7)
    map_reliability = float(spearman_brown(np.array([0.6]), np.array([4.0]))[0])
    assert told["noise_share"] == pytest.approx(1 - map_reliability, abs=1e-6)
    assert told["neighbours_known"] is True
    # Spearman and Brown's: how many times as much data reaches 0.9.
    times = 0.9 / 0.1 * (1 - order_reliability) / order_reliability
    assert told["forecast"]["order"]["times"] == pytest.approx(times, abs=1e-5)
    assert told["forecast"]["order"]["responses"] == math.ceil(times * 500 - 1e-6)
    assert told["forecast"]["order"]["seconds"] == pytest.approx(max(times - 1, 0) * 60, abs=1e-3)
    assert told["forecast"]["axis"]["seconds"] == 0
    assert told["reliability_by_instruction"] is None


def test_roles_are_ranked_by_their_place_with_what_is_known_of_each(space):
    ranked = space.summary()["roles"]
    roles, axis = space.role_vectors_at().numpy(), space.axis_at().numpy()
    places = roles @ axis
    assert [r["name"] for r in ranked] == [NAMES[i] for i in np.argsort(-places)]
    for row in ranked:
        k = NAMES.index(row["name"])
        assert row["projection"] == pytest.approx(places[k], abs=1e-5)
        assert row["cosine"] == pytest.approx(cosine(roles[k] - roles.mean(0), axis), abs=1e-5)
        assert row["n"] == k + 3
        assert row["interval"] == [k - 1, k + 1]
        reliability = float(space.tensors["role_reliability"][k])
        assert (
            row["reliability"] is None if math.isnan(reliability) else row["reliability"] == pytest.approx(reliability)
        )
        assert row["cosine_corrected"] == pytest.approx(float(space.tensors["cosine_corrected"][k]))
    bare = without(space, "counts", "role_reliability", "role_interval", "cosine_corrected").summary()["roles"][0]
    assert (bare["n"], bare["reliability"], bare["interval"], bare["cosine_corrected"]) == (None, None, None, None)
    silent = without(space, "default_moments", "separation", "axis_split_half").summary()
    assert (silent["default_projection"], silent["separation"], silent["axis_reliability"]) == (None, None, None)
    assert list(space.to_dataframe()["name"]) == [r["name"] for r in ranked]


def test_a_compact_space_says_the_same_at_its_layer(space, tmp_path):
    small = space.compact()
    assert small.is_compact
    assert small.tensors["role_vectors"].shape == (ROLES, 1, HIDDEN)
    assert small.axis_pc1() == pytest.approx(space.axis_pc1(), abs=1e-6)
    a, b = small.summary(), space.summary()
    for name in ("reliability", "default_projection", "axis_reliability", "layer", "n_roles"):
        assert a[name] == b[name], name
    assert [r["name"] for r in a["roles"]] == [r["name"] for r in b["roles"]]
    assert small.interventions("capped", 0.5) == space.interventions("capped", 0.5)
    with pytest.raises(SpaceError, match="at layer 2 only"):
        small.role_vectors_at(0)
    small.save(tmp_path / "small.safetensors")
    again = PersonaSpace.load(tmp_path / "small.safetensors").summary()
    assert again["reliability"] == a["reliability"]
    places = [[r["projection"] for r in told["roles"]] for told in (again, a)]
    assert places[0] == pytest.approx(places[1], abs=0.01), "vectors are kept in half precision"


def test_a_compact_space_of_two_readings_keeps_what_the_other_ones_axis_and_first_component_have_in_common(space):
    tensors = {
        f"prompt.{name}": space.tensors[name] for name in ("role_vectors", "default_vector", "axis", "components")
    }
    other = {"prompt": {"reading": "prompt", "layer": 1, "roles": NAMES, "samples": ["as long as a book"]}}
    small = PersonaSpace({**space.meta, "other": other}, {**space.tensors, **tensors}).compact()
    assert small.meta["other"]["prompt"]["axis_pc1"] == pytest.approx(space.axis_pc1())
    assert "samples" not in small.meta["other"]["prompt"]
    assert small.interventions() == ()


# -- the monitor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", [AlertRule(0.5, 1, 0.3), AlertRule(0.4, 3, 0.2), AlertRule(0.0, 2, 0.0)])
def test_an_alert_stands_as_a_plain_loop_over_the_last_turns_says(space, rule, seed):
    drifts = np.random.default_rng(seed).normal(scale=1.2, size=60).tolist()
    watch, stands = Monitor(space, rule), False
    for k, drift in enumerate(drifts):
        watch.look(drift)
        last = drifts[max(0, k + 1 - rule.turns) : k + 1]
        mean = sum(last) / len(last)
        if mean > rule.threshold and len(last) == rule.turns:
            stands = True
        elif mean < rule.threshold - rule.hysteresis:
            stands = False
        assert watch.alert == stands
    unruled = Monitor(space)
    unruled.look(99.0)
    assert not unruled.alert


@pytest.mark.parametrize("seed", range(6))
def test_where_a_turn_fell_is_the_span_of_greatest_sum_under_the_defaults_mean_less_a_deviation(space, seed):
    watch, rng = Monitor(space), np.random.default_rng(seed)
    mean, std = space.default_moments()
    tokens = rng.normal(size=(12, HIDDEN)) * 4 + rng.normal() * 2 * watch.unit.numpy()
    tokens += (mean - std) * watch.unit.numpy()
    projections = [watch.feed(torch.from_numpy(token)) for token in tokens]
    assert projections == pytest.approx((tokens @ watch.unit.numpy()).tolist(), abs=1e-4)
    reading = watch.end_turn()
    under = [mean - std - p for p in projections]
    spans = {(a, b): sum(under[a:b]) for a in range(12) for b in range(a + 1, 13)}
    best = max(spans, key=spans.__getitem__)
    assert reading.fell == (best if spans[best] > 0 else None)
    assert (reading.tokens, reading.index) == (12, 0)
    assert reading.projection == pytest.approx(np.mean(projections), abs=1e-4)
    assert reading.drift == pytest.approx((mean - np.mean(projections)) / std, abs=1e-4)
    assert reading.each == tuple(projections)
    assert watch.end_turn() is None, "nothing was fed"
    watch.feed(torch.from_numpy(tokens[0]))
    watch.drop_turn()
    assert watch.end_turn() is None
    watch.feed(torch.from_numpy(tokens[1]))
    assert (watch.end_turn().index, watch.readings[-1].each) == (1, (projections[1],))
    watch.feed(torch.from_numpy(tokens[1]))
    assert watch.end_turn(7).index == 7


def test_a_turn_as_plain_values_has_tokens_only_where_they_are_asked_for(space):
    watch = Monitor(space, along=space.along(["role:role1"]))
    watch.feed(torch.ones(HIDDEN))
    reading = watch.end_turn()
    assert set(reading.to_dict(tokens=True)) - set(reading.to_dict()) == {"each"}
    assert reading.to_dict()["along"]["role:role1"]["projection"] == pytest.approx(
        float(space.direction("role:role1").sum()), abs=1e-5
    )
    assert "thinking" not in reading.to_dict()
    other = Monitor(space)
    other.feed(torch.ones(HIDDEN))
    assert "along" not in other.end_turn().to_dict()


@pytest.mark.parametrize(("turns", "correlation"), [(1, 0.3), (2, 0.0), (4, 1.0), (20, 0.5)])
def test_simulated_conversations_are_as_long_as_said_and_their_turns_as_alike(turns, correlation):
    drifts, within = monitor.simulated(correlation, turns, 20_000, seed=3)
    fewest, most = max(6, turns), max(15, turns)
    windows = within.sum(1)
    assert drifts.shape == (20_000, most)
    assert (windows.min(), windows.max()) == (fewest - turns + 1, most - turns + 1)
    lengths = np.bincount(windows + turns - 1, minlength=most + 1)[fewest:]
    assert np.allclose(lengths / 20_000, 1 / (most - fewest + 1), atol=0.01)
    assert drifts.var() == pytest.approx(1, abs=0.03)
    if most > 1:
        assert np.corrcoef(drifts[:, 0], drifts[:, 1])[0, 1] == pytest.approx(correlation, abs=0.03)
    highest = monitor.highest(drifts[:50], within[:50])
    for conversation, inside, top in zip(drifts[:50], within[:50], highest, strict=True):
        means = [conversation[k : k + turns].mean() for k in range(most - turns + 1) if inside[k]]
        assert top == pytest.approx(max(means))
    assert monitor.conversation_lengths(turns) == (
        "conversations of 20 turns" if turns == 20 else "conversations of 6 to 15 turns"
    )


def test_a_rule_says_itself_in_words_and_refuses_what_makes_none():
    rule = AlertRule(
        2.0, 2, 0.5, 0.01, 0.02, 0.5, 40, "conversations of 6 to 15 turns", (0.004, 0.03), 0.002, 0.25, 0.9
    )
    assert str(rule) == (
        "mean drift over 2 turns above +2.00, which 1% (0.4 to 3%) of the default's conversations of 6 to 15 turns raise, "
        "and 0.2% of its single runs of 2 turns; turns of a conversation are taken to correlate by 0.25; so do 50% of roles' "
        "runs and 90% of such conversations at 40 tokens a reply"
    )
    assert str(AlertRule(1.5)) == "mean drift over 1 turn above +1.50"
    assert "5% of the default's conversations raise" in str(AlertRule(1.5, rate=0.05))
    assert "and 2% of its single turns; how alike" in str(AlertRule(1.5, rate=0.05, window_rate=0.02))
    for values in ((float("nan"),), (float("inf"),), (1.0, 0), (1.0, 1, -0.1)):
        with pytest.raises(UsageError, match="expected a finite threshold"):
            AlertRule(*values)
    assert AlertRule(1.0, 1, 0.0).hysteresis == 0


def test_a_rates_bounds_are_those_of_a_mean_and_a_deviation_of_so_many_replies(space):
    tops = np.sort(np.random.default_rng(0).normal(size=40_000))
    rng = np.random.default_rng(1)
    low, high = monitor.rate_bounds(space, tops, 1.645, 50, 0.0, rng)
    rates = []
    for _ in range(3000):
        seen = rng.normal(size=50)
        rates.append(1 - np.searchsorted(tops, seen.mean() + 1.645 * seen.std(ddof=1)) / len(tops))
    assert (low, high) == pytest.approx(np.quantile(rates, [0.025, 0.975]).tolist(), abs=0.006)
    few_questions = PersonaSpace({**space.meta, "catalog": {"questions": 5}}, space.tensors)
    wide = monitor.rate_bounds(few_questions, tops, 1.645, 50, 1.0, np.random.default_rng(2))
    five = monitor.rate_bounds(space, tops, 1.645, 5, 0.0, np.random.default_rng(2))
    assert wide == pytest.approx(five, abs=1e-9), "replies that say the same count once"
