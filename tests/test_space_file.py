"""A space's file says what it holds: whatever else stands in it is refused in one line, and what is read can be shown."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import personaspace as ps
from characters import characters, two_readings
from personaspace.errors import SpaceError
from personaspace.formats.hub import model_card
from personaspace.report import words
from personaspace.report.map import ends, page_data
from personaspace.space import PersonaSpace, layout

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def spaces(tmp_path_factory) -> dict[str, PersonaSpace]:
    """The packaged one (compact, of two readings, calibrated), one of 0.1.0, and full ones of one reading and of two."""
    folder = tmp_path_factory.mktemp("spaces")
    of_replies = characters(folder / "one", 3.0, roles=6)
    return {
        "packaged": PersonaSpace.load("smollm2"),
        "earlier": PersonaSpace.load(DATA / "run-0.1.0"),
        "full": of_replies,
        "two": two_readings(of_replies, of_replies),
    }


def written(path: Path, meta: dict, tensors: dict[str, torch.Tensor]) -> Path:
    """A file with just that in it, compact spaces' numbers as they are."""
    contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {"personaspace": json.dumps({**meta, "format": 1})})
    return path


def shown(space: PersonaSpace) -> None:
    """All that is made of a space by who only looks at it."""
    summary = space.summary()
    assert words.lines(summary, 80)
    json.dumps(page_data(space, summary))
    ends(summary)
    model_card(space, "owner/name")
    for cap in space.caps:
        space.cap(cap)
    space.read(space.tensors["default_vector"])


def test_every_space_at_hand_is_read_and_shown(spaces, tmp_path):
    for name, space in spaces.items():
        shown(PersonaSpace.load(written(tmp_path / f"{name}.safetensors", space.meta, space.tensors)))


CHANGED = [
    (("model",), None, "model"),
    (("model",), {}, "model.id"),
    (("model", "id"), 3, "model.id"),
    (("model", "layers"), 7, "model.layers"),
    (("layer",), "one", "layer"),
    (("layer",), -1, "layer"),
    (("layer",), 99, "layer"),
    (("layer",), True, "layer"),
    (("roles",), [], "roles"),
    (("roles",), ["a"], "role"),
    (("roles",), "ghost", "roles"),
    (("caps",), [], "caps"),
    (("caps",), {"capped": {"layers": [1]}}, "caps"),
    (("caps",), {"capped": {"layers": [99], "floors": [1.0]}}, "caps"),
    (("caps",), {"capped": {"layers": [1, 2], "floors": [1.0]}}, "caps"),
    (("caps",), {"capped": {"layers": [1], "floors": [float("nan")]}}, "caps"),
    (("left_out",), [], "left_out"),
    (("samples",), {"ghost": ["a"]}, "samples"),
    (("judge",), "rules", "judge"),
    (("histogram",), {"edges": [1], "default": [1], "roles": [1]}, "histogram"),
    (("reading",), "thought", "reading"),
    (("other",), {"thought": {}}, "other"),
    (("role_layers",), [99], "role"),
]


@pytest.mark.parametrize(("place", "value", "told"), CHANGED, ids=str)
@pytest.mark.parametrize("name", ["packaged", "full"])
def test_metadata_that_cannot_be_meant_is_named_in_one_line(spaces, tmp_path, name, place, value, told):
    meta = copy.deepcopy(spaces[name].meta)
    inner = meta
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(SpaceError, match=told) as problem:
        PersonaSpace.load(written(tmp_path / "s.safetensors", meta, spaces[name].tensors))
    assert len(str(problem.value).splitlines()) == 1
    assert len(str(problem.value)) < 400


@pytest.mark.parametrize("missing", ["model", "layer", "roles"])
def test_metadata_without_what_every_space_has_is_named(spaces, tmp_path, missing):
    meta = {name: value for name, value in spaces["full"].meta.items() if name != missing}
    with pytest.raises(SpaceError, match=missing):
        PersonaSpace.load(written(tmp_path / "s.safetensors", meta, spaces["full"].tensors))


def test_every_tensor_of_another_size_or_kind_is_named(spaces, tmp_path):
    for space in spaces.values():
        for name in space.tensors:
            if name.startswith("beginnings") or name.endswith(("reply.components", "reply_factor")):
                continue
            tensor = space.tensors[name]
            changed = [tensor[:-1], torch.cat([tensor, tensor]), tensor[None], tensor.sum(), tensor.to(torch.complex64)]
            for k, other in enumerate(changed):
                path = written(tmp_path / f"{k}.safetensors", space.meta, {**space.tensors, name: other})
                with pytest.raises(SpaceError, match=name.rpartition(".")[2]) as problem:
                    PersonaSpace.load(path)
                assert len(str(problem.value).splitlines()) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["role_vectors", "default_vector", "axis", "components", "residual_norm", "quantiles_roles"]
)
def test_a_number_that_is_none_is_refused_where_every_number_counts(spaces, tmp_path, name, number):
    tensor = spaces["full"].tensors[name].clone()
    tensor.view(-1)[3] = number
    with pytest.raises(SpaceError, match=f"{name} has NaN or Inf in it"):
        PersonaSpace.load(
            written(tmp_path / "s.safetensors", spaces["full"].meta, {**spaces["full"].tensors, name: tensor})
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=120)
def test_whatever_stands_anywhere_in_the_metadata_a_space_is_refused_in_one_line_or_can_be_shown(
    spaces, tmp_path, data
):
    space = spaces[data.draw(st.sampled_from(["packaged", "full", "two"]))]
    meta = copy.deepcopy(space.meta)
    inner, key = meta, data.draw(st.sampled_from(sorted(meta)))
    # Some way down, through what is a dict or a list.
    while isinstance(inner[key], dict | list) and inner[key] and data.draw(st.booleans()):
        inner = inner[key]
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    inner[key] = data.draw(JSON)
    try:
        loaded = PersonaSpace.load(written(tmp_path / "s.safetensors", meta, space.tensors))
    except SpaceError as problem:
        assert len(str(problem).splitlines()) == 1  # noqa: PT017 - or it can be shown
        return
    shown(loaded)


def test_the_format_of_a_compact_space_without_its_unit_is_read_as_it_stands(spaces, tmp_path):
    data = layout.written(spaces["packaged"].meta, spaces["packaged"].tensors)
    (tmp_path / "s.safetensors").write_bytes(data)
    assert torch.allclose(
        PersonaSpace.load(tmp_path / "s.safetensors").tensors["role_vectors"],
        ps.PersonaSpace.load("smollm2").tensors["role_vectors"],
        atol=1e-2,
    )
