"""`report.html`: one self-contained page of a run, from what lies in its folder; needs no model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medrm.errors import DataError
from medrm.evaluation.charts import Chart, step_chart
from medrm.evaluation.compare import Comparison
from medrm.evaluation.measures import RULES
from medrm.evaluation.readings import read_response, read_responses
from medrm.evaluation.report import Report, read_json, read_report
from medrm.evaluation.tables import CONTROLS, gain_sentence, p_value, percent, points
from medrm.evaluation.verdicts import UNREAD

TEMPLATE = "report.html.jinja"
SMALL = 50
"""Groups of fewer cases are shown faded: their intervals span tens of points."""

REPLIES = 6
"""Replies of a judge that are shown of each kind."""

REPLY_LENGTH = 2_000
"""Characters that are shown of a reply."""


def write_page(run_dir: Path) -> Path:
    """Writes `report.html` into a run folder and returns its path.

    Raises:
        DataError: the folder lacks comparison.json or one of the two evaluations.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "comparison.json").is_file():
        raise DataError(
            f"{str(run_dir)!r} holds no comparison.json. Give the folder of a finished run."
        )
    comparison = read_json(run_dir / "comparison.json")
    before, after = (read_report(run_dir / "evaluation" / name) for name in ("before", "after"))
    replies = run_dir / "evaluation" / "after" / "responses.jsonl"
    manifest_path = run_dir / "run.json"
    manifest = read_json(manifest_path) if manifest_path.is_file() else {}
    page = _environment().get_template(TEMPLATE)
    text = page.render(
        comparison=comparison,
        before=before,
        after=after,
        controls=CONTROLS,
        rules=RULES,
        charts=_charts(run_dir / "metrics.jsonl", comparison),
        groups=_groups(before, after, comparison["primary"]["dimension"]),
        funnels=_funnels(before, after),
        gain=gain_sentence(comparison),
        replies=_sample(replies, after["dimensions"]) if replies.is_file() else {},
        excluded=_excluded(manifest),
        manifest={key: _pretty(value) for key, value in manifest.items()},
        small=SMALL,
    )
    path = run_dir / "report.html"
    # A reply may hold half a surrogate pair, which is no UTF-8.
    path.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    return path


def _environment() -> Environment:
    """A Jinja environment that escapes everything and accepts no unknown name."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "p_value": p_value}
    return environment


def _charts(path: Path, comparison: Comparison) -> list[Chart]:
    """The training curves, where the run logged any."""
    if not path.is_file():
        return []
    metrics = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    dimension = comparison["primary"]["dimension"]
    references = {"chance": 0.5}
    ceiling = comparison["primary"]["ceiling"]
    if ceiling is not None:
        references["ceiling"] = ceiling
    charts = (
        step_chart(
            f"Accuracy on {dimension}",
            metrics,
            {f"accuracy_{dimension}": "training", f"eval_accuracy_{dimension}": "development"},
            share=True,
            references=references,
        ),
        step_chart("Loss", metrics, {"loss": "training", "eval_loss": "development"}),
    )
    return [chart for chart in charts if chart is not None]


def _groups(before: Report, after: Report, dimension: str) -> dict[str, list[dict[str, Any]]]:
    """For each grouping its members on the primary dimension, those with most cases first."""
    early = before["protocols"]["robust"]["groups"]
    late = after["protocols"]["robust"]["groups"]
    tables = {}
    for group in late:
        rows = [
            {
                "member": member,
                "before": early.get(group, {}).get(member, {}).get(dimension, {}).get("accuracy"),
                **measures[dimension],
            }
            for member, measures in late[group].items()
        ]
        tables[group] = sorted(rows, key=lambda row: (-row["n"], row["member"]))
    return tables


def _funnels(before: Report, after: Report) -> dict[str, list[tuple[str, int, int]]]:
    """For each parser the counts of replies before and after: read, not wholly read, suspect."""
    funnels = {}
    for parser in ("strict", "official"):
        old, new = ((report["parsing"] or {}).get(parser) or {} for report in (before, after))
        rows: list[tuple[str, int, int]] = []
        for part, word in {"stages": "read by rule", "unread": "not wholly read"}.items():
            early, late = old.get(part, {}), new.get(part, {})
            rows += [
                (f"{word}: {name}", early.get(name, 0), late.get(name, 0))
                for name in sorted({*early, *late})
            ]
        if parser == "official":
            rows += [
                (part.replace("_", " "), old.get(part, 0), new.get(part, 0))
                for part in ("suspect", "voided_but_readable")
            ]
        if old or new:
            funnels[parser] = rows
    return funnels


def _sample(path: Path, asked: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """The first replies that were read whole, and the first ones that were not."""
    sample: dict[str, list[dict[str, str]]] = {"read": [], "not wholly read": []}
    for one in read_responses(path):
        if one.text is None and one.state == "ok":
            continue  # probabilities
        readings = read_response(one, asked)
        unread = {str(reading.reason) for reading in readings.values() if reading.outcome == UNREAD}
        kind = sample["not wholly read" if unread else "read"]
        if len(kind) < REPLIES:
            said = ", ".join(f"{name} {reading.outcome}" for name, reading in readings.items())
            kind.append(
                {
                    "title": f"{one.case_id}, {one.order}, vote {one.vote}",
                    "said": said,
                    "reason": "; ".join(sorted(unread)),
                    "text": _cut(one.text or ""),
                }
            )
        if all(len(found) >= REPLIES for found in sample.values()):
            break
    return {kind: found for kind, found in sample.items() if found}


def _cut(text: str) -> str:
    more = len(text) - REPLY_LENGTH
    return text if more <= 0 else f"{text[:REPLY_LENGTH]} [{more} more characters]"


def _excluded(manifest: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Training cases that were set aside, counted by reason."""
    entries = manifest.get("data", {}).get("excluded", [])
    return Counter(entry["reason"] for entry in entries).most_common()


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
