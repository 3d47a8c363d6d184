"""medrm/README.md, the page for readers of the code, names what there is, and all of it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from test_layering import ROWS

PAGE = Path("medrm") / "README.md"


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def paths_in(text: str) -> Iterator[tuple[str, str]]:
    """What stands in backticks and is a path: the path, and the name behind `::` or nothing."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for token in re.findall(r"`([^`\s]+)`", prose):
        path, _, name = token.partition("::")
        if path.endswith((".py", "/")) or (name and "." in path):
            yield path, name


def map_paths(text: str) -> Iterator[str]:
    """The files and folders of the map, which is indented by folder."""
    folders: list[str] = []
    block = section(text, "The map").split("```text")[1].split("```")[0]
    for line in block.strip("\n").splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        yield "".join([*folders[:depth], name])
        if name.endswith("/"):
            folders[depth:] = [name]


def defines(path: Path, name: str) -> bool:
    """Whether a module defines a function, a class, a method or a constant of that name."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for step in name.split("."):
        named = {
            node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        if step in named:
            body = named[step].body
            continue
        targets = [
            target
            for node in body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        ]
        return any(isinstance(target, ast.Name) and target.id == step for target in targets)
    return True


def problems(text: str, folder: Path) -> list[str]:
    """What the text names and is not there."""
    missing = []
    for path, name in paths_in(text):
        if not (folder / path).exists():
            missing.append(path)
        elif name and not defines(folder / path, name):
            missing.append(f"{path}::{name}")
    return missing


@pytest.fixture
def page(root: Path) -> str:
    return (root / PAGE).read_text(encoding="utf-8")


def test_every_path_and_name_is_there(root: Path, page: str) -> None:
    assert len(list(paths_in(page))) > 60
    assert problems(page, root / "medrm") == []


def test_links_lead_somewhere(root: Path, page: str) -> None:
    headings = {
        re.sub(r"[^a-z -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^## (.+)$", page, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", page):
        path, _, anchor = target.partition("#")
        assert (root / "medrm" / path).exists() if path else anchor in headings, target


def test_the_map_holds_every_module(root: Path, page: str) -> None:
    """A line for each; the first line of a module's docstring says what it is."""
    package = root / "medrm"
    modules = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.name != "__init__.py" and "_builtin" not in path.parts
    }
    mapped = list(map_paths(page))
    assert len(mapped) == len(set(mapped))
    assert {path for path in mapped if path.endswith(".py")} - {"__init__.py"} == modules
    assert [path for path in mapped if not (package / path).exists()] == []


def test_every_registry_is_a_dictionary_with_entries(page: str) -> None:
    names = re.findall(r"`([a-z_/]+)\.py::([A-Z_]+)`", section(page, "To add something"))
    assert len(names) >= 8
    for path, name in names:
        module = importlib.import_module(
            f"medrm.{path.removesuffix('/__init__')}".replace("/", ".")
        )
        registry = getattr(module, name)
        assert isinstance(registry, Mapping)
        assert len(registry) >= 2


def test_the_layers_are_those_of_the_test(page: str) -> None:
    lines = re.findall(r"^    (.+)$", section(page, "Layers"), re.MULTILINE)
    assert [tuple(line.split(" | ")) for line in lines] == list(reversed(ROWS))


@pytest.mark.parametrize("reference", ["no/where.py", "files.py::no_such", "schema.py::Case.no"])
def test_the_guard_sees_what_is_missing(reference: str, root: Path) -> None:
    assert problems(f"It is in `{reference}`.", root / "medrm") == [reference]
    assert problems("`schema.py::Verdict.correct`, `data/`", root / "medrm") == []
