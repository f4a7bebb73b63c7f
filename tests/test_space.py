"""What a space says of itself, where a mean lies in it, and what it does to a reply."""

from __future__ import annotations

import pytest
import torch

from personaspace.errors import SpaceError
from personaspace.model.interventions import Add, Cap
from personaspace.space import PersonaSpace


@pytest.fixture(scope="module")
def space() -> PersonaSpace:
    return PersonaSpace.load("smollm2")


def without(space: PersonaSpace, *names: str) -> PersonaSpace:
    return PersonaSpace(space.meta, {k: t for k, t in space.tensors.items() if k not in names})


def test_a_mean_lies_where_projection_drift_and_nearest_roles_say(space):
    mean = space.role_vectors_at()[space.roles.index("ghost")]
    location = space.read(mean, k=3)
    assert location.projection == float(mean @ space.axis_at())
    default_mean, deviation = space.tensors["default_moments"][:, space.layer].tolist()
    assert location.drift == pytest.approx((default_mean - location.projection) / deviation)
    assert location.nearest == space.nearest(mean, 3)
    assert len(space.read(mean).nearest) == 5


def test_a_mean_is_read_at_its_layer_whether_it_comes_alone_or_with_others(space):
    layers, hidden = space.tensors["axis"].shape
    every_layer = torch.randn(layers, hidden, generator=torch.Generator().manual_seed(0))
    alone = space.read(every_layer[space.layer])
    assert space.read(every_layer[space.layer][None]) == alone
    assert space.read(every_layer) == alone
    for shape in ((2, hidden), (1, layers, hidden), (hidden - 1,)):
        with pytest.raises(SpaceError, match="activations of"):
            space.read(torch.zeros(shape))


def test_a_space_that_does_not_know_the_default_reads_no_drift(space):
    bare = without(space, "default_moments")
    mean = space.role_vectors_at()[0]
    assert bare.read(mean).drift is None
    assert bare.read(mean).projection == space.read(mean).projection
    with pytest.raises(SpaceError, match="lacks default_moments"):
        bare.default_moments()


def test_steering_stands_before_the_cap_so_that_what_was_steered_is_held(space):
    steered, towards_ghost, cap = space.interventions("capped", [(-0.3, "axis"), (0.1, "ghost")])
    assert isinstance(steered, Add)
    assert isinstance(towards_ghost, Add)
    assert isinstance(cap, Cap)
    assert steered == space.steer(-0.3)
    assert towards_ghost == space.steer(0.1, "ghost")
    assert cap == space.cap("capped")


def test_nothing_is_done_where_nothing_is_asked_for(space):
    assert space.interventions() == ()
    assert space.interventions(steer=0.0) == ()
    assert space.interventions(steer=0.3) == (space.steer(0.3),)
    assert space.interventions(cap="capped") == (space.cap(),)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [({"cap": ""}, "no cap ''"), ({"cap": "x"}, "no cap 'x'"), ({"steer": [(1.0, "x")]}, "no role")],
)
def test_a_cap_or_direction_that_is_not_in_the_space_is_refused(space, asked, problem):
    with pytest.raises(SpaceError, match=problem):
        space.interventions(**asked)


@pytest.mark.parametrize(
    ("can", "tensor"),
    [
        ("knows_default", "default_moments"),
        ("calibrated", "beginnings_default"),
        ("can_steer", "residual_norm"),
        ("knows_axis_reliability", "axis_split_half"),
        ("knows_cosine_errors", "cosine_error"),
        ("knows_role_intervals", "role_interval"),
        ("knows_counts", "counts"),
    ],
)
def test_what_a_space_can_do_is_what_it_holds_the_figures_for(space, can, tensor):
    assert getattr(space, can) is True
    assert getattr(without(space, tensor), can) is False


def test_a_space_says_which_roles_and_components_it_holds_at_every_layer(space):
    layers, hidden = space.tensors["axis"].shape
    components = torch.randn(layers, 4, hidden, generator=torch.Generator().manual_seed(0))
    large = PersonaSpace({k: v for k, v in space.meta.items() if k not in ("role_layers", "axis_pc1")}, {})
    assert (space.is_compact, space.stored_components, space.knows_pc1) == (True, 0, True)
    assert (large.is_compact, large.stored_components, large.knows_pc1) == (False, 0, False)
    filled = PersonaSpace(large.meta, {"components": components})
    assert (filled.stored_components, filled.knows_pc1) == (4, True)
    assert (large.caps.keys(), PersonaSpace({}, {}).caps) == (space.caps.keys(), {})


def test_a_figure_by_layer_is_none_where_it_is_undefined_and_where_there_is_none():
    space = PersonaSpace({}, {"separation": torch.tensor([0.5, float("nan")])})
    assert space.figure_by_layer("separation") == [0.5, None]
    assert space.figure_by_layer("variance_ratio") is None
