"""A space's named directions: what they are called, what they are, and how the default's replies lie along any of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from personaspace.errors import SpaceError
from personaspace.formats import read_vectors
from personaspace.formats.gguf import write_control_vector
from personaspace.space import PersonaSpace, layout

LAYERS, HIDDEN, LAYER = 4, 8, 2


@pytest.fixture(scope="module")
def space() -> PersonaSpace:
    rng = torch.Generator().manual_seed(1)
    roles, traits = torch.randn(3, LAYERS, HIDDEN, generator=rng), torch.randn(2, LAYERS, HIDDEN, generator=rng)
    default = torch.randn(LAYERS, HIDDEN, generator=rng)
    meta = {
        "format": layout.FORMAT,
        "model": {"id": "planted", "layers": LAYERS, "hidden": HIDDEN},
        "layer": LAYER,
        "roles": ["bard", "ghost", "skeptic"],
        "traits": ["sarcastic", "skeptic"],
    }
    axis = default - roles.mean(0)
    return PersonaSpace(meta, {"role_vectors": roles, "trait_vectors": traits, "default_vector": default, "axis": axis})


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def test_each_kind_of_direction_is_its_vector_at_the_spaces_layer(space):
    roles, traits = space.tensors["role_vectors"], space.tensors["trait_vectors"]
    expected = {
        "axis": space.tensors["axis"][LAYER],
        "ghost": roles[1, LAYER] - roles[:, LAYER].mean(0),
        "role:skeptic": roles[2, LAYER] - roles[:, LAYER].mean(0),
        "sarcastic": traits[0, LAYER],
        "trait:skeptic": traits[1, LAYER],
        "own:mine": torch.arange(HIDDEN).float(),
    }
    with_own = space.with_own({"mine": torch.arange(HIDDEN).float()})
    for name, vector in expected.items():
        torch.testing.assert_close(with_own.direction(name), unit(vector))
    # A role's name stands before a trait's.
    assert torch.equal(space.direction("skeptic"), space.direction("role:skeptic"))
    assert [d.name for d in with_own.along(["axis", "ghost", "sarcastic", "mine"])] == [
        *("axis", "role:ghost", "trait:sarcastic", "own:mine")
    ]
    assert all(with_own.direction(name).norm() == pytest.approx(1) for name in with_own.directions)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ghosst", "no role 'ghosst' in this space of 3 roles and 2 trait vectors; nearest: ghost"),
        ("trait:sarcstic", "no trait 'sarcstic' .* nearest: sarcastic"),
        ("trait:ghost", "no trait 'ghost'"),
        ("own:mine", "no own 'mine' .*, which has no own vectors$"),
        ("mood:ghost", "no role 'mood:ghost'"),
        ("", "no role ''"),
    ],
)
def test_a_name_that_no_direction_has_is_told_with_those_near_it(space, name, problem):
    with pytest.raises(SpaceError, match=problem):
        space.direction(name)


@pytest.mark.parametrize(
    ("name", "vector", "problem"),
    [
        ("zero", torch.zeros(HIDDEN), "zero, or has NaN"),
        ("nan", torch.full((HIDDEN,), torch.nan), "zero, or has NaN"),
        ("short", torch.ones(HIDDEN - 1), r"the shape \[7\]; expected \[8\], or \[4, 8\]"),
        ("axis", torch.ones(HIDDEN), "not 'axis'"),
        ("a:b", torch.ones(HIDDEN), "without a colon"),
    ],
)
def test_a_vector_that_is_no_direction_is_refused(space, name, vector, problem):
    with pytest.raises(SpaceError, match=problem):
        space.with_own({name: vector})


@given(replies=st.integers(2, 40), kept=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_moments_along_a_direction_are_those_of_the_replies_where_the_whole_factor_is_kept(space, replies, kept, seed):
    rng = torch.Generator().manual_seed(seed)
    activations = torch.randn(replies, HIDDEN, generator=rng, dtype=torch.float64) * torch.linspace(0.1, 3, HIDDEN)
    centred = (activations - activations.mean(0)) / (replies - 1) ** 0.5
    _, deviations, directions = torch.linalg.svd(centred, full_matrices=False)
    factor = (deviations[:, None] * directions)[: min(replies - 1, HIDDEN)].float()
    spread = {"reply_mean": activations.mean(0).float(), **layout.fewer(factor, torch.zeros(1), kept)}
    knowing = PersonaSpace(space.meta, {**space.tensors, **spread})
    (along,) = knowing.along(["ghost"])
    projections = (activations @ along.unit.double()).numpy()
    assert along.mean == pytest.approx(projections.mean(), abs=1e-4)
    if kept >= len(factor):
        assert along.std == pytest.approx(projections.std(ddof=1), rel=1e-3, abs=1e-4)
    # Whatever is cut away, the variance over all directions together stays.
    total = sum(knowing.moments_along(row)[1] ** 2 for row in torch.eye(HIDDEN))
    assert total == pytest.approx(float(activations.var(0).sum()), rel=1e-3)
    reading = along.read(knowing.tensors["reply_mean"] + 2 * along.std * along.unit)
    assert reading.shift == pytest.approx(2, rel=1e-3)


def test_a_space_that_keeps_nothing_of_the_replies_reads_a_projection_and_no_shift(space):
    (along,) = space.along(["sarcastic"])
    assert along.read(torch.ones(HIDDEN)) == type(along.read(torch.ones(HIDDEN)))(float(along.unit.sum()), None)


def test_directions_are_kept_in_the_file_and_in_a_compact_one(space, tmp_path):
    with_own = space.with_own({"mine": torch.arange(HIDDEN).float(), "deep": torch.randn(LAYERS, HIDDEN)})
    for name, written in (("whole", with_own), ("compact", with_own.compact())):
        written.save(tmp_path / f"{name}.safetensors")
        read = PersonaSpace.load(tmp_path / f"{name}.safetensors")
        assert read.directions == with_own.directions
        for direction in with_own.directions:
            torch.testing.assert_close(read.direction(direction), with_own.direction(direction), atol=1e-4, rtol=1e-4)
    with pytest.raises(SpaceError, match="trait vectors at layer 2 only"):
        with_own.compact().direction("sarcastic", 0)


def test_a_file_that_names_directions_that_it_lacks_is_refused(space, tmp_path):
    bad = {**space.meta, "own": ["mine"]}
    PersonaSpace(bad, space.tensors).save(tmp_path / "bad.safetensors")
    with pytest.raises(SpaceError, match="names 1 own, and it lacks the tensor own_vectors"):
        PersonaSpace.load(tmp_path / "bad.safetensors")


def test_vectors_of_ones_own_are_read_from_the_files_that_they_are_kept_in(space, tmp_path):
    vector, every = torch.arange(HIDDEN).float(), torch.randn(LAYERS, HIDDEN)
    torch.save(vector, tmp_path / "plain.pt")
    torch.save({"vector": every, "layer": 2}, tmp_path / "study.pt")
    torch.save({"one": vector, "two": every}, tmp_path / "several.pt")
    save_file({"alone": vector}, tmp_path / "single.safetensors")
    save_file({"one": vector, "two": every}, tmp_path / "pair.safetensors")
    save_file({"vectors": every}, tmp_path / "traits.safetensors", {"personaspace": '{"traits": ["a", "b", "c", "d"]}'})
    np.save(tmp_path / "array.npy", every.numpy())
    write_control_vector(tmp_path / "control.gguf", space, "ghost")
    names = {
        "plain.pt": {"plain": vector},
        "study.pt": {"study": every},
        "several.pt": {"one": vector, "two": every},
        "single.safetensors": {"single": vector},
        "pair.safetensors": {"one": vector, "two": every},
        "traits.safetensors": dict(zip("abcd", every, strict=True)),
        "array.npy": {"array": every},
    }
    for name, expected in names.items():
        read = read_vectors(tmp_path / name, LAYERS, HIDDEN)
        assert list(read) == list(expected)
        assert all(torch.equal(read[key], expected[key]) for key in expected)
    control = read_vectors(tmp_path / "control.gguf", LAYERS, HIDDEN)["control"]
    torch.testing.assert_close(unit(control[LAYER]), space.direction("ghost"))


NPY = b"\x93NUMPY\x01\x00\x76\x00%-117s\n"
"""A file of version 1.0: its header, padded, and no numbers behind it."""


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.pt", None, "no such file"),
        ("text.txt", b"1 2 3", "ends in .safetensors, .pt, .npy, .gguf"),
        ("cut.safetensors", b"\x10", "not a whole safetensors file"),
        ("cut.pt", b"PK\x03\x04", "not a whole .pt file"),
        ("cut.npy", b"\x93NUMPY", "not a whole .npy file"),
        (
            "huge.npy",
            NPY % b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000,), }",
            "not a whole .npy",
        ),
        (
            "vast.npy",
            NPY % b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000000000000000000000000000,), }",
            "not a whole .npy",
        ),
        ("cut.gguf", b"GGUF", "GGUF"),
    ],
)
def test_a_file_that_holds_no_vectors_is_told_in_one_line(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpaceError, match=problem) as refused:
        read_vectors(tmp_path / name, LAYERS, HIDDEN)
    assert "\n" not in str(refused.value)


def test_a_single_number_that_is_called_vectors_is_refused(tmp_path):
    names = {"personaspace": json.dumps({"traits": ["formal"]})}
    save_file({"vectors": torch.tensor(1.0)}, tmp_path / "one.safetensors", names)
    with pytest.raises(SpaceError, match=r"shape \[\]"):
        read_vectors(tmp_path / "one.safetensors", LAYERS, HIDDEN)


def test_vectors_of_another_model_are_refused_by_their_shape(tmp_path):
    np.save(tmp_path / "wide.npy", np.ones(HIDDEN + 1, dtype=np.float32))
    np.save(tmp_path / "whole.npy", np.ones(HIDDEN, dtype=np.int64))
    for name in ("wide", "whole"):
        with pytest.raises(SpaceError, match=r"expected real numbers, \[8\] or \[4, 8\]"):
            read_vectors(tmp_path / f"{name}.npy", LAYERS, HIDDEN)
