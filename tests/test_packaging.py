"""What a user installs: pinned versions, metadata, the files that ship in the wheel."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import medrm
from medrm.pipeline import manifest

TESTED = ("test", "serve")
"""The extras that `pip install medrm[test]` takes along."""


@pytest.fixture
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture
def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_requirement_is_pinned_to_an_accepted_version(
    project: dict[str, Any], pins: dict[str, str]
) -> None:
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    extras = project["project"]["optional-dependencies"]
    lines = project["project"]["dependencies"] + [
        line for extra in TESTED for line in extras[extra]
    ]
    wanted = [Requirement(line) for line in lines if not line.startswith("medrm[")]
    assert len(wanted) >= 20
    for requirement in wanted:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} refuses {version}"


def test_the_pins_are_plain(pins: dict[str, str]) -> None:
    assert pins["torch"] == "2.13.0"
    for name, version in pins.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}: no local suffix, no host"


def test_gpu_only_dependencies_are_asked_for_on_linux_alone(project: dict[str, Any]) -> None:
    markers = {
        requirement.name: str(requirement.marker)
        for requirement in map(Requirement, project["project"]["dependencies"])
    }
    assert markers["deepspeed"] == markers["bitsandbytes"] == 'sys_platform == "linux"'


def test_what_the_wheel_takes_along_exists(root: Path, project: dict[str, Any]) -> None:
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["force-include"]) == {"recipes", "data", "evaluation", "accelerate_configs"}
    for source, target in wheel["force-include"].items():
        assert (root / source).is_dir()
        assert target == f"medrm/_builtin/{source}"


def test_the_version_that_is_recorded_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "version", lambda name: "0.0")  # of a stale install
    assert manifest.versions()["medrm"] == medrm.__version__


def test_licence_and_citation(root: Path, project: dict[str, Any]) -> None:
    assert project["project"]["license"] == "Apache-2.0"
    licence = (root / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert citation["license"] == "Apache-2.0"
    assert citation["version"] == project["project"]["version"] == medrm.__version__


def test_ci_installs_and_tests_as_the_readme_says(root: Path) -> None:
    script = (root / ".ci" / "run").read_text()
    readme = (root / "README.md").read_text()
    for command in ('-e ".[test]" -c constraints.txt', "python -m pytest\n"):
        assert command in script
        assert command in readme
    assert (root / ".ci" / "run").stat().st_mode & 0o111


def test_the_workflow_runs_the_script_on_every_supported_python(
    root: Path, project: dict[str, Any]
) -> None:
    jobs = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    (job,) = jobs.values()
    assert job["strategy"]["matrix"]["python-version"] == ["3.11", "3.12"]
    assert project["project"]["requires-python"] == ">=3.11"
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_hooks_run_what_the_script_runs_in_its_versions(
    root: Path, project: dict[str, Any]
) -> None:
    """Local hooks name no version, so that the extra `test` is the one place that does."""
    repositories = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    script = (root / ".ci" / "run").read_text().splitlines()
    for hook in hooks:
        assert hook["language"] == "system"
        command = hook["entry"].split(" --")[0]
        assert any(line.split(" --")[0].removesuffix(" .") == command for line in script), command
    assert len(hooks) == 3
    pinned = [line.split("==")[0] for line in project["project"]["optional-dependencies"]["test"]]
    assert {"ruff", "mypy"} <= set(pinned)


def test_the_changelog_begins_with_the_version(root: Path) -> None:
    headings = re.findall(r"^## \[(.+)\] - (\S+)$", (root / "CHANGELOG.md").read_text(), re.M)
    assert headings[0][0] == medrm.__version__
    assert headings[-1][0] == "0.1.0"
    released = str(yaml.safe_load((root / "CITATION.cff").read_text())["date-released"])
    assert headings[0][1] == released


def test_issue_forms_are_forms(root: Path) -> None:
    folder = root / ".github" / "ISSUE_TEMPLATE"
    forms = [path for path in folder.glob("*.yml") if path.stem != "config"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        assert all(field["type"] in ("markdown", "textarea") for field in form["body"])


def test_links_between_pages_for_contributors_lead_somewhere(root: Path) -> None:
    for page in (root / ".github" / "CONTRIBUTING.md", root / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), target
