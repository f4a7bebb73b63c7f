"""A space from responses in memory: every figure of it by a plain loop over these, and which roles are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from in_memory import InMemory, planted_responses
from personaspace.catalog import DEFAULT
from personaspace.errors import DesignError
from personaspace.mapping import estimate
from personaspace.report import map as report
from personaspace.space import PersonaSpace
from personaspace.stats import mixed, reliability, vectors
from personaspace.stats.forecast import spearman_brown

NAMES = [f"role{k}" for k in range(1, 8)]
HIDDEN, LAYERS = 10, 4
META = {"model": {"id": "planted", "fingerprint": "planted", "layers": LAYERS, "hidden": HIDDEN}}


def included_of(source: InMemory, requested: int = 8, least: int | None = None) -> estimate.IncludedResponses:
    return estimate.included_responses(source, NAMES, dict.fromkeys([DEFAULT, *NAMES], requested), least)


@pytest.fixture(scope="module")
def source() -> InMemory:
    return planted_responses(0)


@pytest.fixture(scope="module")
def included(source) -> estimate.IncludedResponses:
    return included_of(source)


@pytest.fixture(scope="module")
def space(included) -> PersonaSpace:
    return estimate.estimate(included, None, 3, {**META, "kept": "as it was"})


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def test_role_vectors_and_axis_are_those_of_the_mixed_model_layer_by_layer(source, space):
    y, role, question = source.activations, source.role, source.question
    for layer in range(LAYERS):
        at_layer = y[:, layer : layer + 1]
        ratio = mixed.variance_ratio(mixed.Moments.of(role, question, [at_layer]))
        # Generalised least squares, all responses in one matrix: a question moves all who answer it alike.
        roles, questions = np.eye(8)[role], np.eye(12)[question]
        weight = np.linalg.inv(np.eye(len(y)) + questions @ questions.T / ratio[0])
        solved = np.linalg.solve(roles.T @ weight @ roles, roles.T @ weight @ y[:, layer].numpy())
        assert np.allclose(space.tensors["role_vectors"][:, layer].numpy(), solved[1:], atol=1e-4)
        assert np.allclose(space.tensors["default_vector"][layer].numpy(), solved[0], atol=1e-4)
        assert np.allclose(space.tensors["axis"][layer].numpy(), solved[0] - solved[1:].mean(0), atol=1e-4)
        assert float(space.tensors["variance_ratio"][layer]) == ratio[0]


def test_how_responses_lie_on_the_axis_is_counted_one_by_one(source, space):
    for layer in range(LAYERS):
        axis = unit(space.tensors["axis"][layer].double())
        on = np.array([float(a[layer] @ axis) for a in source.activations])
        of_default, of_roles = on[source.role == 0], on[source.role > 0]
        mean, deviation = space.tensors["default_moments"][:, layer].tolist()
        assert mean == pytest.approx(of_default.mean(), abs=1e-4)
        assert deviation == pytest.approx(of_default.std(ddof=1), abs=1e-4)
        for percent in (0, 1, 25, 50, 75, 99, 100):
            told = [float(space.tensors[f"quantiles_{who}"][percent, layer]) for who in ("default", "roles")]
            expected = [np.percentile(values, percent) for values in (of_default, of_roles)]
            assert told == pytest.approx(expected, abs=1e-4)
        norms = [float(a[layer].norm()) for a in source.activations]
        assert float(space.tensors["residual_norm"][layer]) == pytest.approx(np.mean(norms), rel=1e-5)
        if layer == space.layer:
            drawn = space.meta["histogram"]
            assert len(drawn["edges"]) == 61
            assert (drawn["edges"][0], drawn["edges"][-1]) == pytest.approx((on.min(), on.max()), abs=1e-4)
            for who, values in (("default", of_default), ("roles", of_roles)):
                assert sum(drawn[who]) == len(values)
                middle = drawn["edges"][30]
                assert sum(drawn[who][:30]) == (values < middle).sum()


def test_a_layers_separation_is_on_questions_that_its_axis_did_not_see(source, included, space):
    fold = np.random.default_rng(3).permutation(np.arange(12) % 10)
    by_fold = np.full((10, LAYERS), np.nan)
    for layer in range(LAYERS):
        one = slice(layer, layer + 1)
        ratio = estimate.variance_ratios(included, one)
        for k in range(10):
            rows = fold[source.question] == k
            fit = vectors.Fit(included.cells, (fold != k).astype(float), partly=True)
            axis = unit(fit.axis(source.sums(included.cells, one), ratio)[0])
            on = (source.activations[rows, layer] @ axis).numpy()
            by_fold[k, layer] = vectors.separation(on[:, None], source.role[rows] == 0, source.question[rows])[0]
    expected = np.nanmean(by_fold, axis=0)
    assert np.allclose(space.tensors["separation"].numpy(), expected, rtol=1e-3, equal_nan=True)
    assert space.layer == vectors.pick_layer(by_fold)
    assert space.meta["layer_chosen"] == "auto"


def test_reliabilities_are_those_of_halves_by_question_and_by_instruction(source, included, space):
    layers = slice(0, LAYERS)
    ratios = estimate.variance_ratios(included, layers)
    splits = reliability.split_fits(included.cells, 20, 3)
    by_question = reliability.split_half(splits[:10], source.sums(included.cells, layers), ratios)
    texts = source.by_instruction()
    by_text = reliability.split_half(
        reliability.instruction_fits(included.cells, texts, 10, 3), source.sums_by_instruction(texts, layers), ratios
    )
    for name, half in (("split_half", by_question), ("split_half_by_instruction", by_text)):
        for figure in ("axis", "order", "map"):
            told = space.tensors[f"{figure}_{name}"].numpy()
            assert np.allclose(told, getattr(half, figure), atol=1e-4), (figure, name)
        assert np.allclose(space.tensors[f"{name}_factor"].numpy(), half.factor)
    at_layer, factor = slice(space.layer, space.layer + 1), float(by_question.factor[space.layer])
    products = reliability.Products.of(
        splits, source.sums(included.cells, at_layer), float(ratios[space.layer]), len(NAMES)
    )
    roles = spearman_brown(products.role_split_half(), factor)
    assert np.allclose(space.tensors["role_reliability"].numpy(), roles, atol=1e-4)
    assert np.allclose(space.tensors["cosine_error"].numpy(), products.cosine_error(), atol=1e-4)
    at_chosen, ratio = source.sums(included.cells, at_layer), float(ratios[space.layer])
    left_out = [reliability.Products.of(p, at_chosen, ratio) for p in reliability.without_questions(splits[:5], 10, 3)]
    assert space.meta["reliability_interval"] == products.intervals(factor, 100, 3, left_out)
    by_roles = products.intervals(factor, 100, 3)
    (low, high), (least, most) = space.meta["reliability_interval"]["order"], by_roles["order"]
    assert low < least < most <= high  # other questions might have been asked as well
    assert space.meta["reliability_interval"]["map"] == by_roles["map"]
    whole = estimate.reliabilities(included, space.layer, 3, ("axis", "order", "map"))
    one = reliability.split_half(splits, source.sums(included.cells, at_layer), ratios[at_layer])
    assert whole["axis"] == pytest.approx(float(spearman_brown(one.axis)[0]))
    assert whole["order"] == pytest.approx(float(spearman_brown(one.order, one.factor)[0]))
    assert whole["map"] == pytest.approx(float(spearman_brown(one.map, one.factor)[0]))


def test_a_role_and_the_axis_have_the_intervals_of_a_bootstrap_over_questions(source, included, space):
    one = slice(space.layer, space.layer + 1)
    ratio = float(estimate.variance_ratios(included, one)[0])
    axis = vectors.Fit(included.cells).axis(source.sums(included.cells, one), np.array([ratio]))[0].numpy()
    drawn = reliability.bootstrap(included.cells, source.sums(included.cells, one)[:, 0], axis, 100, 3, ratio)
    assert np.allclose(space.tensors["role_interval"].numpy(), drawn.projection, atol=1e-4)
    assert space.meta["axis_pc1_interval"] == pytest.approx(drawn.axis_pc1.tolist(), abs=1e-5)
    centre = space.tensors["role_interval"].mean(1) + space.role_vectors_at().mean(0) @ space.axis_at()
    places = space.role_vectors_at() @ space.axis_at()
    assert torch.allclose(centre - centre.mean(), places - places.mean(), atol=1e-3)


def test_what_is_known_of_the_defaults_replies_is_their_mean_and_deviation_along_any_direction(source, space):
    of_default = source.activations[torch.from_numpy(source.role == 0), space.layer]
    for seed in range(5):
        direction = unit(torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed)).double())
        on = of_default @ direction
        mean, deviation = space.moments_along(direction.float())
        assert mean == pytest.approx(float(on.mean()), abs=1e-4)
        assert deviation == pytest.approx(float(on.std()), rel=1e-4)
    alone = InMemory(source.activations[23:].numpy(), source.role[23:], source.question[23:])
    assert estimate.default_replies(included_of(alone), 0) == {}
    two = InMemory(source.activations[22:].numpy(), source.role[22:], source.question[22:])
    assert set(estimate.default_replies(included_of(two), 0)) == {"reply_mean", "reply_factor", "reply_rest"}


def test_a_space_says_what_it_was_made_from(source, space):
    assert space.roles == NAMES
    assert space.tensors["counts"].tolist() == [8] * 7
    assert (space.meta["n_default"], space.meta["n_kept"]) == (24, 24 + 7 * 8)
    assert space.meta["kept"] == "as it was"
    assert space.meta["role_interval"] == "pooled"
    assert space.meta["left_out"] == {}
    assert all(t.dtype == torch.float32 for name, t in space.tensors.items() if name != "counts")
    assert torch.allclose(space.tensors["components"].norm(dim=-1), torch.ones(1), atol=1e-4)


def test_a_layer_that_is_asked_for_is_taken(included):
    asked = estimate.estimate(included, 0, 0, META)
    assert (asked.layer, asked.meta["layer_chosen"]) == (0, "given")


def test_as_many_passes_as_memory_asks_for_give_the_same_space(included, space, monkeypatch):
    monkeypatch.setattr(estimate, "SUMS_MEMORY", 1)
    assert estimate._passes(included, HIDDEN) == [slice(k, k + 1) for k in range(LAYERS)]
    again = estimate.estimate(included, None, 3, {**META, "kept": "as it was"})
    for name, tensor in space.tensors.items():
        assert torch.allclose(again.tensors[name], tensor, atol=1e-5, equal_nan=True), name
    texts = included.source.by_instruction()
    largest = max(len(c.count) + len(c.block_of) for c in (included.cells, texts))
    monkeypatch.setattr(estimate, "SUMS_MEMORY", 3 * 8 * largest * HIDDEN)
    assert estimate._passes(included, HIDDEN) == [slice(0, 3), slice(3, 4)]


def test_responses_that_are_all_alike_have_no_axis(source):
    alike = InMemory(np.ones_like(source.activations.numpy()), source.role, source.question)
    with pytest.raises(DesignError, match="all alike"):
        estimate.estimate(included_of(alike), 0, 0, META)
    broken = source.activations.numpy().copy()
    broken[0, 0, 0] = np.inf
    with pytest.raises(DesignError, match="not all numbers"):
        estimate.estimate(included_of(InMemory(broken, source.role, source.question)), 1, 0, META)


@pytest.mark.parametrize(
    ("requested", "least", "needed"), [(8, None, 4), (9, None, 5), (16, None, 8), (17, None, 9), (8, 1, 1), (8, 9, 9)]
)
def test_a_role_needs_half_of_what_was_asked_or_as_many_as_is_said(requested, least, needed):
    source = planted_responses(1, each=8, roles=5)
    keep = np.ones(len(source.role), dtype=bool)
    keep[np.flatnonzero(source.role == 2)[needed:]] = False
    keep[np.flatnonzero(source.role == 3)[max(needed - 1, 0) :]] = False
    part = InMemory(source.activations[keep].numpy(), source.role[keep], source.question[keep])
    wanted = dict.fromkeys([DEFAULT, *NAMES[:5]], requested)
    out = {"role3": f"{min(needed - 1, 8)} of {requested} responses kept, {needed} needed"}
    everybody_short = needed > 8
    if everybody_short:
        with pytest.raises(DesignError, match="24 responses of the default and 0 roles"):
            estimate.included_responses(part, NAMES[:5], wanted, least)
        return
    included = estimate.included_responses(part, NAMES[:5], wanted, least)
    assert included.left_out == out
    assert included.cells.names == (DEFAULT, "role1", "role2", "role4", "role5")
    assert included.counts == {DEFAULT: 24, "role1": 8, "role2": needed, "role3": needed - 1, "role4": 8, "role5": 8}
    assert (included.sampled == (part.role != 3)).all()


def test_roles_that_were_not_asked_for_are_neither_in_nor_left_out(source):
    wanted = {DEFAULT: 24, "role1": 8, "role4": 8, "role6": 8}
    included = estimate.included_responses(source, NAMES, wanted, None)
    assert included.cells.names == (DEFAULT, "role1", "role4", "role6")
    assert included.left_out == {}
    two = estimate.included_responses(source, NAMES, {"role1": 8, "role4": 8}, None)
    assert two.cells.names == (DEFAULT, "role1", "role4"), "the default is always in"
    with pytest.raises(DesignError, match="1 roles with enough responses"):
        estimate.included_responses(source, NAMES, {"role1": 8}, None)
    without = InMemory(source.activations[24:].numpy(), source.role[24:], source.question[24:])
    with pytest.raises(DesignError, match=r"^0 responses of the default and 7 roles"):
        included_of(without)


def test_prompts_layer_is_the_first_at_which_order_and_map_are_as_good_as_at_their_best():
    order = np.array([0.1, 0.80, 0.90, 0.91, 0.90, 0.5])
    map_ = np.array([0.7, 0.70, 0.70, 0.885, 0.90, 0.9])
    assert estimate.layer_of_prompts(order, map_) == 3
    apart = np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.6, 0.9])
    assert estimate.layer_of_prompts(*apart) == 1, "no layer has both: the best sum"
    at_best = np.ones(2)
    assert estimate.layer_of_prompts(np.array([0.881, 0.90]), at_best) == 0, "less than two hundredths under the best"
    assert estimate.layer_of_prompts(np.array([0.879, 0.90]), at_best) == 1
    assert estimate.layer_of_prompts(at_best, np.array([0.879, 0.90])) == 1
    assert estimate.layer_of_prompts(np.array([0.9, np.nan, 0.8]), np.ones(3)) == 2
    assert estimate.layer_of_prompts(np.ones(3), np.array([0.9, np.nan, 0.8])) == 2
    assert [estimate.deep_enough(n) for n in (1, 2, 3, 12, 30)] == [0, 1, 2, 8, 20]


def test_prompts_are_read_at_their_own_layer(included, space):
    of_prompts = estimate.estimate(included, None, 3, {**META, "reading": "prompt"})
    figures = [
        spearman_brown(space.tensors[f"{name}_split_half"].double().numpy(), space.tensors["split_half_factor"].numpy())
        for name in ("order", "map")
    ]
    assert of_prompts.layer == estimate.layer_of_prompts(*figures)
    assert of_prompts.meta["layer_chosen"] == "auto"
    for made, rule in ((of_prompts, "about as reliable as at their best layers"), (space, "of the best separation")):
        assert rule in report.render(made)


def test_an_axis_alone_and_what_replies_show_of_it_are_those_of_the_space(included, space):
    axis = estimate.unit_axis(included, HIDDEN)
    own = space.tensors["axis"]
    assert torch.allclose(axis, own / own.norm(dim=-1, keepdim=True), atol=1e-5)
    tensors, histogram = estimate.on_replies(included, own, space.layer)
    for name in ("quantiles_default", "quantiles_roles", "default_moments", "residual_norm", "reply_mean"):
        assert torch.allclose(tensors[name], space.tensors[name], atol=1e-4), name
    assert histogram["default"] == space.meta["histogram"]["default"]


def test_replies_are_told_apart_best_where_they_lie_apart_most_along_anothers_axis(included, source):
    axis = torch.zeros(LAYERS, HIDDEN)
    axis[:, 0] = 2.0
    fold = np.random.default_rng(5).permutation(np.arange(12) % 10)
    by_fold = []
    for k in range(10):
        rows = fold[source.question] == k
        on = source.activations[rows][:, :, 0].numpy()
        by_fold.append(vectors.separation(on, source.role[rows] == 0, source.question[rows]))
    assert estimate.layer_of_replies(included, axis, 5) == vectors.pick_layer(np.array(by_fold))


def test_how_often_a_replys_own_role_is_near_is_counted_one_by_one(included, source, space):
    hits = []
    for activation, role in zip(source.activations.float(), source.role, strict=True):
        if role:
            near = [name for name, _ in space.nearest(activation[space.layer], 2)]
            hits.append(NAMES[role - 1] in near)
    told = estimate.own_role_near(included, space, 2)
    assert told == {"k": 2, "own": pytest.approx(np.mean(hits)), "chance": pytest.approx(2 / 7), "n": 56}
    assert estimate.own_role_near(included, space, 50)["k"] == 6
    assert estimate.own_role_near(included, space)["k"] == 5


def test_halves_are_compared_in_single_precision_without_what_all_share(source, included):
    sums = source.sums(included.cells, slice(0, LAYERS)) + 0.0
    shifted = InMemory(source.activations.numpy() + 1e4, source.role, source.question)
    far = estimate._light(shifted.sums(included.cells, slice(0, LAYERS)), included.cells)
    near = estimate._light(sums, included.cells)
    assert near.dtype == torch.float32
    assert torch.allclose(far, near, atol=1e-3), "a shift that all share is gone"
    counts = torch.from_numpy(np.concatenate([included.cells.count, included.cells.n.sum(0)])).double()
    mean = source.activations.mean(0)
    assert torch.allclose(near.double(), sums - counts[:, None, None] * mean, atol=1e-4)
