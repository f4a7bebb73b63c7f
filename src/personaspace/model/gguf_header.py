"""Whether a GGUF file's header can be meant, before a reader walks it: readers believe what it says of its own length.

A header of 68 bytes may announce an array of 2^62 numbers, and arrays in arrays without end. Here whatever is announced is held
against the bytes that are there, its tensors as well: a download that was cut has a whole header; no tensor is touched.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type."""

_STRING, _ARRAY = 8, 9
_SMALLEST_FIELD = 13  # an empty name, a type, a byte
_SMALLEST_TENSOR = 24  # an empty name, no dimensions, a type, an offset
_ALIGNMENT, _UINT32 = 32, 4  # where no field `general.alignment` says otherwise

MOST_DIMENSIONS = 4
MOST_KEY = 2**16
"""Bytes of a field's name, by the format."""

MOST_VALUES = 2**22
"""Values of all arrays. The largest vocabularies have a quarter of a million entries, and some more merges; readers take
microseconds for each."""


def check_header(path: Path) -> None:
    """Raises `ValueError` where a GGUF file's header announces more than the file holds, or what no model's has;
    `OSError`. What is no GGUF file at all is left to its reader.

    >>> Path("cut.gguf").write_bytes(b"GGUF" + bytes([3, 0, 0, 0]))
    8
    >>> check_header(Path("cut.gguf"))
    Traceback (most recent call last):
    ValueError: ...
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _Header(data).check()
            except struct.error:
                raise ValueError(f"its header goes on past its {len(data):,} bytes; fetch it again") from None


class _Header:
    """Walks a header. The place is where the next value begins."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place, self.values, self.alignment = data, 4, 0, _ALIGNMENT
        # A version that has nothing in its lower half was written by a machine of the other byte order.
        self.order = "<" if struct.unpack_from("<I", data, 4)[0] & 0xFFFF else ">"

    def check(self) -> None:
        from gguf import GGML_QUANT_SIZES

        if self._number("I") < 2:
            raise ValueError("found version 1 of the format, expected 2 or 3; convert the model again")
        n_tensors, n_fields = self._number("Q"), self._number("Q")
        self._expect(n_tensors, _SMALLEST_TENSOR, "tensors")
        self._expect(n_fields, _SMALLEST_FIELD, "fields")
        for _ in range(n_fields):
            name, kind = self._skip_string(), self._number("I")
            if name == b"general.alignment" and kind == _UINT32:
                (self.alignment,) = struct.unpack_from(self.order + "I", self.data, self.place)
            self._skip_value(kind)
        ends = [0]
        for _ in range(n_tensors):
            self._skip_string()
            n_dimensions = self._number("I")
            if n_dimensions > MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {n_dimensions:,} dimensions; expected {MOST_DIMENSIONS} at most")
            n_values = math.prod(self._number("Q") for _ in range(n_dimensions))
            kind, offset = self._number("I"), self._number("Q")
            block, size = GGML_QUANT_SIZES.get(kind, (1, 0))  # a type that is unknown here is left to the reader
            ends.append(offset + n_values // block * size)
        begin = self.place + -self.place % max(1, self.alignment)
        if max(ends) and begin + max(ends) > len(self.data):
            raise ValueError(
                f"the file has {len(self.data):,} bytes, and by its header its tensors end at {begin + max(ends):,}: it was "
                "cut off; fetch it again"
            )

    def _number(self, format: str) -> int:
        number: int = struct.unpack_from(self.order + format, self.data, self.place)[0]
        self.place += struct.calcsize(format)
        return number

    def _expect(self, count: int, each: int, noun: str) -> None:
        """Raises `ValueError` where so many of so many bytes each don't fit into the rest of the file."""
        if count * each > len(self.data) - self.place:
            raise ValueError(
                f"its header announces {count:,} {noun}, in a file of {len(self.data):,} bytes; fetch it again"
            )

    def _skip_string(self) -> bytes:
        length = self._number("Q")
        self._expect(length, 1, "bytes of text")
        self.place += length
        return self.data[self.place - length : self.place] if length < MOST_KEY else b""

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_string()
        elif kind == _ARRAY:
            inner, count = self._number("I"), self._number("Q")
            if inner != _STRING and inner not in _SIZES:
                raise ValueError("an array of arrays in its header" if inner == _ARRAY else f"a value of type {inner}")
            self._expect(count, 8 if inner == _STRING else _SIZES[inner], "values of an array")
            self.values += count
            if self.values > MOST_VALUES:
                raise ValueError(f"its header has {self.values:,} values in arrays; expected {MOST_VALUES:,} at most")
            if inner == _STRING:
                for _ in range(count):
                    self._skip_string()
            else:
                self.place += count * _SIZES[inner]
        elif kind in _SIZES:
            self._expect(1, _SIZES[kind], "value")
            self.place += _SIZES[kind]
        else:
            raise ValueError(f"a value of type {kind} in its header; expected 0 to 12")
