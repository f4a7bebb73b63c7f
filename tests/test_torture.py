"""SIGKILL at random instants, over whatever keeps what it has done: nothing is lost, nothing there twice. `make torture` does
it a thousand times."""

from __future__ import annotations

import pytest

from kills import WORK, Torture


@pytest.mark.long
def test_killed_at_random_instants_every_kind_of_work_ends_as_one_left_alone(tmp_path, small_catalog):
    torture = Torture(tmp_path, small_catalog)
    for name in WORK:
        torture.once(name, 3)
        if not torture.kills[name]:  # the first instant came after its end
            torture.once(name, 3)
    assert min(torture.kills.values()) >= 1, torture.kills
