"""Changes lines on purpose and sees whether a test fails: a seeded sample of mutmut's mutants of each module that
`[tool.mutmut]` names. Prints what survives, and the share that was killed with Wilson's interval.

Usage: mutants.py [HOW_MANY_A_MODULE [SEED]]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

SURVIVED, UNTESTED = 0, 33
"""Exit codes that mutmut keeps: of the tests that call a mutant's function, and where none does. All others killed it."""
ANY_ONE = "personaspace.stats.intervals.x_holm__mutmut_1"
MUTMUT = Path(sys.executable).with_name("mutmut")


def outcomes(source: str) -> dict[str, int | None]:
    """By a mutant's name its exit code, None for one that was not tried."""
    codes: dict[str, int | None] = json.loads(Path("mutants", f"{source}.meta").read_text())["exit_code_by_key"]
    return codes


def main(how_many: int = 40, seed: int = 0) -> None:
    """Tries the sample in the current folder, the repository's root."""
    sources = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]["only_mutate"]
    # Trying any one writes them all, and learns which tests call which function.
    subprocess.run([MUTMUT, "run", ANY_ONE], check=True)
    chosen = {}
    for k, source in enumerate(sources):
        names = sorted(outcomes(source))
        rows = np.random.default_rng([seed, k]).permutation(len(names))[:how_many]
        chosen[source] = [names[row] for row in sorted(rows)]
    subprocess.run([MUTMUT, "run", *(name for names in chosen.values() for name in names)], check=True)
    killed, survivors = [], []
    for source, names in chosen.items():
        codes = outcomes(source)
        alive = [name for name in names if codes[name] in (SURVIVED, UNTESTED)]
        killed += [name not in alive for name in names]
        survivors += alive
        print(f"{source}: {len(names) - len(alive)} of {len(names)} killed")
    ends = binomtest(sum(killed), len(killed)).proportion_ci(method="wilson")
    print(f"\n{sum(killed)} of {len(killed)} killed ({ends.low:.0%} to {ends.high:.0%}); what survived:\n")
    for name in survivors:
        subprocess.run([MUTMUT, "show", name], check=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
