"""JSON that anybody may have written: what is wrong with it is one line, and other readers of the package go by that."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from personaspace import json_text
from personaspace.errors import RunError, SpaceError
from personaspace.runs import Run
from personaspace.space import PersonaSpace

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**127), 2**127) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
BAD = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "never closed": "[" * 100_000,
    "deeper than is walked": "[" * 101 + "]" * 101,
    "huge number": "7" * 5_000,
    "huge negative number": '{"layer": -' + "7" * 5_000 + "}",
    "number that passes python": "[" + "7" * 4_000 + "]",
    "cut off": '{"a": [1, 2',
}


@given(VALUES)
def test_what_python_writes_is_read_back_equal(value):
    assert json_text.parse(json.dumps(value)) == value


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_whatever_is_wrong_is_a_value_error_of_one_line(text):
    with pytest.raises(ValueError, match=r"^not (JSON|read): ") as problem:
        json_text.parse(text)
    assert "\n" not in str(problem.value)
    assert len(str(problem.value)) < 100


def test_the_place_of_an_error_is_named_with_its_line():
    with pytest.raises(ValueError, match="at line 3, column 1"):
        json_text.parse('{"a":\n1,\n}')


def test_a_hundred_levels_are_read_and_one_more_is_not():
    assert json_text.parse("[" * 100 + "]" * 100)
    assert not json_text.is_deeper([[[1]]], 3)
    assert json_text.is_deeper([[[1]]], 2)


def test_what_refers_to_itself_over_and_over_is_counted_and_not_walked_to_its_end():
    doubled: list = []
    for _ in range(60):
        doubled = [doubled, doubled]
    assert json_text.is_deeper(doubled, 100, most=1_000)


def test_lines_end_at_line_feeds_alone():
    assert list(json_text.lines("a\u2028b\u0085c\x0bd\n\n \r\ne")) == [(1, "a\u2028b\u0085c\x0bd"), (4, "e")]


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_runs_configuration_and_a_spaces_metadata_are_told_in_one_line(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json: cannot be read: not (JSON|read)") as of_run:
        Run(tmp_path)
    save_file({"axis": torch.zeros(1)}, tmp_path / "space.safetensors", {"personaspace": text})
    with pytest.raises(SpaceError, match=r"space\.safetensors: its metadata is not (JSON|read)") as of_space:
        PersonaSpace.load(tmp_path / "space.safetensors")
    assert "\n" not in str(of_run.value) + str(of_space.value)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"run"'])
def test_a_runs_configuration_that_is_no_object_is_told_so(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json: found a \w+, expected an object"):
        Run(tmp_path)
