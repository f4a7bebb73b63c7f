"""Has every reader of a stranger's file read changed ones, for so many minutes; what fails is kept in tests/data/fuzz/.

    python scripts/fuzz.py 60

A reader must give a value or an error of the project's in one line, within seconds and four gigabytes of addresses. Each
works in a process of its own, which may take no more. Ends with 1 where something failed.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from itertools import count, cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

BATCH, SECONDS = 200, 20
"""Changes that a process tries, and seconds of the processor that one may take."""


def attempt(name: str, seed: str, folder: Path, pending: Path) -> None:
    """In a process of its own: tries changes, each of which stands in a file before it is read."""
    from readers import READERS, changed, check, limited

    logging.disable()
    warnings.simplefilter("ignore")
    path = READERS[name].make(folder)
    original, rng = path.read_bytes(), random.Random(seed)  # noqa: S311 - no secret
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    with limited():
        for _ in range(BATCH):
            pending.write_bytes(changed(original, path.suffix, rng))
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            check(name, folder, pending.read_bytes())
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def main() -> None:
    from readers import CORPUS, READERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=float, nargs="?", default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--readers", help="Some of them, separated by commas.")
    options = parser.parse_args()
    names = options.readers.split(",") if options.readers else list(READERS)
    print(f"{len(names)} readers, {options.minutes:g} minutes, --seed {options.seed}", flush=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ends, tried, failures = time.monotonic() + 60 * options.minutes, 0, set()
    for number, name in zip(count(), cycle(names)):
        if time.monotonic() > ends:
            break
        with tempfile.TemporaryDirectory() as folder:
            pending, told = Path(folder, "pending"), Path(folder, "told")
            process = os.fork()
            if not process:
                try:
                    Path(folder, "work").mkdir()
                    attempt(name, f"{options.seed} {number}", Path(folder, "work"), pending)
                    os._exit(0)
                except BaseException:  # noqa: BLE001 - told by the parent
                    told.write_text(traceback.format_exc())
                    os._exit(1)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            if not status:
                tried += BATCH
                continue
            content = pending.read_bytes()
            lines = told.read_text().strip().splitlines() if told.exists() else [f"ended by signal {-status}"]
            where = next((line.strip() for line in reversed(lines) if line.startswith("  File")), "")
            if (name, where) in failures:
                continue
            failures.add((name, where))
            kept = CORPUS / name / hashlib.sha256(content).hexdigest()[:12]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(content)
            print(f"{name}: {lines[-1][:200]}\n  {where}\n  kept as {kept}", flush=True)
    print(f"{tried:,} changes were read or refused in one line; {len(failures)} kinds of failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
