"""What is deployed: the unit leaves the server little of the machine, the container has no root."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shown import arguments_of, check_arguments

DEPLOY = Path(__file__).parent.parent / "deploy"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_the_units_exposure_is_under_two_and_a_half():
    command = ["systemd-analyze", "security", "--offline=true", str(DEPLOY / "personaspace.service")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (exposure,) = re.findall(r"Overall exposure level for personaspace.service: ([\d.]+)", told)
    assert float(exposure) < 2.5
    assert f"exposure {exposure} of 10" in (DEPLOY / "README.md").read_text()


def test_the_unit_starts_a_server_again_that_ended_and_keeps_its_key_out_of_the_unit():
    unit = (DEPLOY / "personaspace.service").read_text()
    assert "\nRestart=on-failure\n" in unit
    assert "API_KEY" not in re.sub(r"(?m)^#.*", "", unit)


def test_the_container_runs_as_nobody_in_particular_on_a_base_that_can_be_pinned():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users[-1:] == ["10001:10001"]
    assert lines.index("USER 10001:10001") < next(k for k, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ${BASE} AS build", "FROM ${BASE}"]
    assert not [line for line in lines if line.startswith(("ENV", "ARG")) and "KEY" in line]
    assert "--read-only" in "\n".join(lines)


def test_the_space_on_the_hub_starts_the_page_and_lets_the_hub_show_it_in_its_frame():
    *_, entrypoint = (DEPLOY / "space.Dockerfile").read_text().splitlines()
    (command,) = re.findall(r"exec (personaspace .*)\"\]$", entrypoint.replace('\\"', "'"))
    check_arguments(arguments_of(command))
    assert "--framed-by https://huggingface.co" in command


def test_the_tests_that_the_security_page_names_are_there():
    root = DEPLOY.parent
    named = set(re.findall(r"`(test_\w+)`", (root / "SECURITY.md").read_text()))
    written = {
        name for p in (root / "tests").glob("test_*.py") for name in re.findall(r"(?m)^def (test_\w+)", p.read_text())
    }
    assert len(named) > 25
    assert named - written == set()
