"""The order of the layers, the absence of torch where it is promised, and the size of the files.

The syntax tree is walked, so that lazy, relative and type-checking imports count like any other, as
do module names in strings (a table of lazily imported modules).
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import medrm

ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "version"),
    ("failures",),
    ("schema", "files", "folder_lock", "readouts", "progress_bar"),
    ("integrity", "leftovers", "output_folder"),
    ("config", "statistics", "chat_template"),
    ("models", "data", "chat", "parsers"),
    ("exchange",),
    ("scorer",),
    ("objectives",),
    ("evaluation",),
    ("hub",),
    ("pipeline",),
    ("serve",),
    ("throughput_model",),
    ("throughput", "reward_function", "guard", "data_commands"),
    ("cli",),
    ("__main__", "recipes/*.py", "evaluation/*.py"),
)
"""The layers, lowest first. A package's own modules may import each other, without cycles."""

LAZY = {**dict.fromkeys(medrm.__all__, "medrm.schema"), **medrm._LAZY}
"""What `from medrm import NAME` really imports."""

NO_TORCH = (
    "medrm",
    "medrm.errors",
    "medrm.failures",
    "medrm.schema",
    "medrm.files",
    "medrm.folder_lock",
    "medrm.integrity",
    "medrm.leftovers",
    "medrm.readouts",
    "medrm.config.command_line",
    "medrm.statistics.agreement",
    "medrm.statistics.calibration",
    "medrm.statistics.significance",
    "medrm.chat",
    "medrm.parsers",
    "medrm.data.case_set",
    "medrm.data.phantom.phantom_set",
    "medrm.data.store.indexed_cases",
    "medrm.data.readers.benchmarks",
    "medrm.evaluation.records.stored_cases",
    "medrm.evaluation.audit",
    "medrm.evaluation.compare",
    "medrm.evaluation.folds",
    "medrm.evaluation.exports",
    "medrm.evaluation.figures",
    "medrm.evaluation.measures.accuracy",
    "medrm.evaluation.comparison.gate",
    "medrm.evaluation.leaderboard.standings",
    "medrm.evaluation.leaderboard.leaderboard_tables",
    "medrm.evaluation.measures.benchmark_metrics",
    "medrm.exchange.importers",
    "medrm.exchange.write_votes",
    "medrm.exchange.exporters",
    "medrm.scorer",
    "medrm.scorer.engines",
    "medrm.scorer.readouts",
    "medrm.scorer.verdict_rules",
    "medrm.evaluation.evaluator",
    "medrm.evaluation.report",
    "medrm.evaluation.pages.report_page",
    "medrm.evaluation.pages.samples",
    "medrm.evaluation.pages.document",
    "medrm.evaluation.tables.terminal",
    "medrm.evaluation.seeds.seed_report",
    "medrm.pipeline.compare_seeds",
    "medrm.pipeline.data_audit",
    "medrm.pipeline.data_export",
    "medrm.pipeline.requests",
    "medrm.serve.run_service",
)


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the package and every entry script below `root`, parsed."""
    paths = {}
    for path in sorted((root / "medrm").rglob("*.py")):
        names = path.relative_to(root).with_suffix("").parts
        paths[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    for folder in ("recipes", "evaluation"):
        paths |= {f"{folder}/*.py:{path.stem}": path for path in (root / folder).rglob("*.py")}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}


def packages(root: Path) -> set[str]:
    return {".".join(p.parent.relative_to(root).parts) for p in root.rglob("medrm/**/__init__.py")}


def imports(
    name: str, tree: ast.Module, module_names: set[str], folders: set[str]
) -> Iterator[str]:
    """The modules of ours that `tree` imports, wherever in the file it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "medrm":  # everything is then one attribute away
                    yield from sorted(set(LAZY.values()))
                elif alias.name.startswith("medrm."):
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = origin(name, node, folders)
            for alias in node.names if base.split(".")[0] == "medrm" else ():
                target = f"{base}.{alias.name}"
                real = LAZY.get(alias.name, base) if base == "medrm" else base
                yield target if target in module_names else real
        elif isinstance(node, ast.Constant) and node.value in module_names:
            yield str(node.value)


def origin(name: str, node: ast.ImportFrom, folders: set[str]) -> str:
    """The absolute name of what `node` in module `name` imports from."""
    if not node.level:
        return node.module or ""
    names = name.split(".")
    names = names[: len(names) - node.level + (name in folders)]
    return ".".join([*names, *([node.module] if node.module else [])])


def row(name: str) -> tuple[int, str]:
    """The row and the layer of a module."""
    layer = name.split(":")[0] if "/" in name else name.split(".")[1]
    for number, layers in enumerate(ROWS):
        if layer in layers:
            return number, layer
    raise AssertionError(
        f"{name}: no layer; put {layer!r} into ROWS and into the line in medrm/__init__.py"
    )


def violations(root: Path) -> list[str]:
    """What breaks the order: imports from above or beside, and cycles inside a layer."""
    trees, folders = modules(root), packages(root)
    trees.pop("medrm")  # its lazy table is what callers see, not a layer
    problems: list[str] = []
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        number, layer = row(name)
        graph[name] = set()
        for target in imports(name, tree, set(trees), folders):
            if target == "medrm" and "/" not in layer:
                problems.append(f"{name} ({layer}) imports medrm, which imports every layer")
            if target in ("medrm", name):
                continue
            below, beside = row(target)
            if beside == layer and "/" not in layer:
                graph[name].add(target)
            elif below >= number:
                problems.append(f"{name} ({layer}) imports {target} ({beside})")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        problems.append(f"cycle: {' -> '.join(error.args[1])}")
    return problems


def oversized(root: Path, folders: tuple[str, ...]) -> list[str]:
    """Files over 400 lines and functions over 60."""
    problems = []
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            where = path.relative_to(root)
            if (lines := len(text.splitlines())) > 400:
                problems.append(f"{where}: {lines} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or 0) - node.lineno + 1
                    if length > 60:
                        problems.append(f"{where}:{node.lineno} {node.name}: {length} lines")
    return problems


def test_layers_are_kept(root: Path) -> None:
    assert violations(root) == []


def test_files_and_functions_stay_small(root: Path) -> None:
    assert oversized(root, ("medrm", "recipes", "evaluation", "tests")) == []


def test_no_package_files_outside_the_package(root: Path) -> None:
    for folder in ("recipes", "data", "evaluation", "accelerate_configs"):
        assert list((root / folder).rglob("__init__.py")) == []


@pytest.mark.parametrize(
    ("where", "text", "expected"),
    [
        ("errors.py", "import medrm.config", "imports medrm.config"),
        ("chat.py", "def f():\n    from medrm.data import case_set", "imports medrm.data.case_set"),
        ("chat.py", "from .scorer import x", "imports medrm.scorer"),
        ("data/case_set.py", "from ..models import x", "imports medrm.models"),
        ("data/case_set.py", "import medrm", "imports medrm.scorer.open"),
        ("schema.py", "from medrm import read_cases", "imports medrm.data.case_set"),
        ("schema.py", "from medrm import __version__", "imports medrm, which imports every layer"),
        ("config.py", "TABLE = {'a': 'medrm.data.case_set'}", "imports medrm.data.case_set"),
        (
            "statistics.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import medrm.data.case_set",
            "imports medrm.data.case_set",
        ),
        ("data/labels.py", "from medrm.data.case_set import x", "cycle"),
    ],
)
def test_the_guard_sees_a_violation(tmp_path: Path, where: str, text: str, expected: str) -> None:
    package = tmp_path / "medrm"
    files = {"data/case_set.py": "from medrm.data.labels import y\n", "data/labels.py": ""}
    for folder in ("scorer", "models", "data"):
        files[f"{folder}/__init__.py"] = ""
    files |= dict.fromkeys(("errors.py", "schema.py", "config.py", "statistics.py", "chat.py"), "")
    files |= {"__init__.py": "", "scorer/open.py": ""}
    for name, source in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    assert violations(tmp_path) == []
    (package / where).write_text(text)
    assert any(expected in problem for problem in violations(tmp_path))


def test_the_guard_sees_a_long_function(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "long.py").write_text("def f():\n" + "    x = 1\n" * 400)
    assert [problem.split(":")[0] for problem in oversized(tmp_path, ("a",))] == ["a/long.py"] * 2


def without_torch(statement: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{statement}\nsys.exit(3 if 'torch' in sys.modules else 0)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_modules_without_torch() -> None:
    done = without_torch("".join(f"import {name}\n" for name in NO_TORCH))
    assert done.returncode == 0, done.stderr or "torch was loaded"


def test_help_loads_no_torch() -> None:
    done = without_torch(
        "import medrm.cli\ntry:\n    medrm.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'scipy' not in medrm.cli.sys.modules"  # which takes a second
    )
    assert done.returncode == 0, done.stderr or "torch was loaded"
    assert "evaluate" in done.stdout


def test_the_torch_guard_sees_torch() -> None:
    assert without_torch("import torch").returncode == 3
