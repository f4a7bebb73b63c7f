"""Kills map, calibrate, judge and an experiment of a tiny model at random instants, and compares what they leave.

    python scripts/torture.py 1000

Prints how often each was killed; what was lost, or is otherwise than where nobody disturbed it, ends it with what and where.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    from conftest import write_catalog
    from kills import WORK, Torture

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"{options.kills} kills, --seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder, "catalog")
        catalog.mkdir()
        torture = Torture(Path(folder), write_catalog(catalog), options.seed)
        passes = 0
        for name in cycle(WORK):
            torture.once(name, torture.random.randint(1, 12))
            passes += 1
            count = sum(torture.kills.values())
            print(f"\r{count} kills in {passes} passes: {torture.kills}", end="", flush=True)
            if count >= options.kills:
                break
    print(f"\nnothing lost, nothing twice: {count} kills, {passes} times the result of one left alone")


if __name__ == "__main__":
    main()
