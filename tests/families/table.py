"""The table of families in `recipes/README.md`, made from the results of the tests that ran.

    python tests/families/table.py

writes it anew from `results.json`. `test_types.py` compares the two, and writes both where it is
run with `--write-families`.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from families.model_types import NOT_CHAT, TYPES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "recipes" / "README.md"
RESULTS = Path(__file__).with_name("results.json")
BEGIN, END = "<!-- families: from tests/families/results.json -->", "<!-- end of families -->"
PACKAGES = ("transformers", "trl", "peft", "torch", "torchvision", "timm")
HEADINGS = {
    "bradley_terry": "Bradley-Terry",
    "sft": "SFT",
    "dpo": "DPO",
    "grpo": "GRPO",
    "shared_prefix": "shared prefix",
    "reload": "reload bit-identical",
}
"""Column to its heading."""

Results = dict[str, str]
"""Test id to `yes`, `no: REASON`, or the same behind `stubbed `."""


def id_of(model_type: str, column: str) -> str:
    """Returns the id of the test that fills a cell."""
    return f"test_type[{model_type}-{column}]"


def versions() -> dict[str, str]:
    """Returns the versions of what the results depend on, as far as it is installed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def read_results() -> tuple[dict[str, str], Results]:
    """Returns the versions and results that are kept."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    return kept["versions"], kept["results"]


def keep_results(ran: Mapping[str, str]) -> None:
    """Adds results to the file; those of other versions fall, so that one line says with which."""
    kept_versions, kept = read_results() if RESULTS.is_file() else ({}, {})
    here = versions()
    if any(kept_versions.get(name, version) != version for name, version in here.items()):
        kept_versions, kept = {}, {}
    ids = [id_of(name, column) for name in TYPES for column in HEADINGS]
    results = {**kept, **ran}
    content = {
        "versions": kept_versions | here,
        "results": {name: results[name] for name in ids if name in results},
    }
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _cell(result: str, notes: list[str]) -> str:
    """Returns a cell; its reason becomes a note, the same one for the same reason."""
    outcome, _, reason = result.partition(": ")
    if not reason:
        return outcome
    if reason not in notes:
        notes.append(reason)
    return f"{outcome} ({notes.index(reason) + 1})"


def _lines() -> Iterator[str]:
    kept_versions, results = read_results()
    notes: list[str] = []
    yield "| type | " + " | ".join(HEADINGS.values()) + " |"
    yield "| --- " * (len(HEADINGS) + 1) + "|"
    for model_type, tiny in sorted(TYPES.items()):
        missing = f"needs {tiny.needs[-1]}" if tiny.needs else "not run"
        cells = [
            _cell(results.get(id_of(model_type, column), missing), notes) for column in HEADINGS
        ]
        yield f"| `{model_type}` | " + " | ".join(cells) + " |"
    yield ""
    for number, reason in enumerate(notes, start=1):
        yield f"({number}) {reason}  "
    yield ""
    ran_with = ", ".join(f"{name} {version}" for name, version in kept_versions.items())
    yield f"Ran with {ran_with}. {_counts(results)}"
    yield ""
    yield "No conversation about an image can be held with these types, so they have no row:"
    yield ""
    for reason in dict.fromkeys(NOT_CHAT.values()):
        names = ", ".join(f"`{name}`" for name, said in NOT_CHAT.items() if said == reason)
        yield f"- {names}: {reason}"


def _counts(results: Results) -> str:
    """Returns how many types each column is a yes for."""
    counts = {
        heading: sum(results.get(id_of(name, column)) == "yes" for name in TYPES)
        for column, heading in HEADINGS.items()
    }
    said = ", ".join(f"{heading} {count}" for heading, count in counts.items())
    return f"Yes, of {len(TYPES)} types, stubbed ones not counted: {said}."


def table() -> str:
    """Returns what stands between the marks."""
    return "\n".join(_lines())


def table_of_page() -> str:
    """Returns what stands between the marks of the page."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


def write_table() -> None:
    """Puts the table into the page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


def is_crash(error: Exception | None) -> bool:
    """Returns whether an error is neither a check that failed nor a refusal by medrm."""
    if error is None or isinstance(error, AssertionError):
        return False
    return not type(error).__module__.startswith("medrm")


def agrees(error: Exception | None, result: str, kept: str, same_versions: bool) -> bool:
    """Returns whether a trial agrees with the table.

    Other versions may round otherwise and give other reasons, so only a crash where the table says
    yes speaks against them.

    Args:
        error: what the trial raised.
        result: what `result_of` makes of it.
        kept: what the table says.
        same_versions: whether the installed versions are those of the table.
    """
    if same_versions:
        return result == kept
    return not (is_crash(error) and kept.removeprefix("stubbed ") == "yes")


def result_of(error: Exception | None, folder: Path) -> str:
    """Returns what is kept of a trial: `yes`, or `no` with the first sentence of the reason.

    Paths are left out, and small numbers are kept by their magnitude, which other machines share.
    """
    if error is None:
        return "yes"
    reason = " ".join(str(error).replace(f"{folder}/", "").split())
    if is_crash(error):
        reason = f"{type(error).__name__}: {reason}"
    reason = re.sub(r"\d\.\d+(e-\d+)", r"1\1", reason).replace("|", "/")
    return f"no: {re.split(r'[.;] (?=[A-Za-z])', reason)[0][:300].rstrip('.')}"


if __name__ == "__main__":
    write_table()
