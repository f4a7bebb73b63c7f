"""Whatever stands in a file, it is read as what it says or refused in one line. `make fuzz` goes on for as long as wanted."""

from __future__ import annotations

import random

import pytest

from readers import CORPUS, READERS, changed, check, limited

TRIED = 12
"""Changes of each reader's example."""


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_was_changed_is_read_or_refused_in_one_line(tmp_path, name):
    path = READERS[name].make(tmp_path)
    original = path.read_bytes()
    assert check(name, tmp_path, original), "the example is not read itself"
    rng = random.Random(name)
    with limited():
        for _ in range(TRIED):
            check(name, tmp_path, changed(original, path.suffix, rng))


KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_failed_is_read_or_refused_in_one_line(tmp_path, path):
    with limited():
        check(path.parent.name, tmp_path, path.read_bytes())
