"""What a release is made of: the workflows, who is to be cited, licences; they name what is there."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE.replace("\\\n", " "), re.M)[1].split())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

spec = importlib.util.spec_from_file_location("licences", ROOT / "scripts" / "licences.py")
licences = importlib.util.module_from_spec(spec)
spec.loader.exec_module(licences)


def called(workflow: dict) -> set[str]:
    """The make targets that a workflow runs, those of its matrices too."""
    targets = set()
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            for target in re.findall(r"make (\$\{\{ matrix\.\w+ \}\}|[\w-]+)", step.get("run", "")):
                variable = re.match(r"\$\{\{ matrix\.(\w+)", target)
                targets |= set(job["strategy"]["matrix"][variable[1]]) if variable else {target}
    return targets


def test_the_workflows_run_what_is_run_by_hand():
    run = set().union(*(called(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in WORKFLOWS))
    by_hand = set(re.findall(r"^make (\S+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M))
    assert by_hand - {"test"} | {"coverage"} <= run <= TARGETS  # the latter is the former with the lines that ran noted


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_unless_a_job_says_what_more_it_may(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}


def test_the_pythons_that_are_tried_are_those_that_the_package_names():
    checks = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8"))
    pythons = checks["jobs"]["versions"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={pythons[0]}"


def test_what_is_to_be_cited_has_the_packages_version_licence_and_study():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], citation["version"], citation["license"], citation["abstract"]) == (
        PROJECT["name"],
        SETTINGS["tool"]["hatch"]["version"]["fallback-version"],
        PROJECT["license"],
        PROJECT["description"],
    )
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2601.10387"


def test_the_version_is_the_tags_which_what_is_installed_follows():
    assert PROJECT["dynamic"] == ["version"]
    options = SETTINGS["tool"]["hatch"]["version"]
    assert options["raw-options"]["fallback_version"] == options["fallback-version"]
    assert Version(version("personaspace")) >= Version(options["fallback-version"])


def test_a_release_is_built_from_a_tag_and_tried_before_it_is_published():
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    assert release[True]["push"] == {"tags": ["v*"]}  # YAML reads the key `on` as true
    build, publish = release["jobs"]["build"], release["jobs"]["publish"]
    assert "make wheel" in [step.get("run") for step in build["steps"]]
    assert build["steps"][0]["with"]["fetch-depth"] == 0, "without the tags there is no version"
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}


def test_the_page_of_licences_lists_every_requirement_or_says_that_it_does_not():
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = {canonicalize_name(name) for name in re.findall(r"^\| (\S+) \|", page, re.M)}
    listed |= set(re.search(r"and so not listed: (.*)\.$", page, re.M)[1].split(", "))
    required = {canonicalize_name(Requirement(line).name) for line in lines} - {"personaspace"}
    assert required - listed == set(), "run `make licences`"


def test_a_licence_is_what_the_metadata_states_the_expression_first():
    def stated(**fields: str) -> str:
        from email.message import Message

        metadata = Message()
        for name, value in fields.items():
            metadata[name.replace("_", "-")] = value
        return licences.licence_of(type("Package", (), {"metadata": metadata})())

    assert stated(License_Expression="MIT", License="BSD") == "MIT"
    assert stated(License="BSD-3-Clause", Classifier="License :: OSI Approved :: BSD License") == "BSD-3-Clause"
    assert stated(License="UNKNOWN", Classifier="License :: OSI Approved :: MIT License") == "MIT License"
    assert stated(License="MIT License\n\nCopyright …") == "MIT License"
    assert stated(License="Copyright …\nRedistribution …") == "not stated"


def test_requirements_of_requirements_are_followed_and_what_is_missing_is_named():
    installed, missing = licences.required([Requirement("jinja2"), Requirement("no-such-package-here")])
    assert {"jinja2", "markupsafe"} <= set(installed)
    assert missing == {"no-such-package-here"}
