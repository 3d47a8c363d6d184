"""A set with all that a form may stumble over, its exports, and what they are compared by."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from medrm.cli import main
from medrm.data.case_set import read_drafts
from medrm.data.pseudonyms import pseudonyms
from medrm.data.sources import CaseDraft

HARD = "a <b> & \"quoted\" 'answer'\r\n\ttail \u00e4\u4e2d"
FORMULA = '=HYPERLINK("http://example.org";"x")'
LONG = "long <text> & " * 8000  # 112 kB
ODD = '../<Genauigkeit> & "Q"'


def png(grey: int, mode: str = "L") -> bytes:
    stored = io.BytesIO()
    image = Image.new(mode, (24, 16), grey)
    image.putpixel((0, 0), 0)
    image.save(stored, "TIFF" if mode == "F" else "PNG")
    return stored.getvalue()


def line(case_id: str, annotator: str, **changes: Any) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "images": ["scan.png"],
        "question": f"What of {case_id}?",
        "answers": [f"{case_id} first", f"{case_id} second"],
        "annotator": annotator,
        "votes": {"overall": "A"},
        "patient": f"patient-{case_id}",
        "organ": "chest",
        "source": "model-x-against-model-y",
    } | changes


def export(source: Path, form: str, output: Path, *options: str) -> dict[str, Any]:
    assert (
        main(["data", "export", str(source), "--to", form, "--output", str(output), *options]) == 0
    )
    report: dict[str, Any] = json.loads((output / "export_report.json").read_text("utf-8"))
    return report


def drafts(path: Path) -> dict[str, CaseDraft]:
    """Cases with their votes by id; how an image was called counts for nothing."""
    _, opened = read_drafts(str(path))
    return {draft.case_id: draft for draft in opened.read().drafts}


def content(draft: CaseDraft) -> list[Any]:
    digests = [ref.digest for ref in draft.images]
    shared = [pseudonyms(draft.independent), draft.groups, draft.context]
    return [draft.case_id, digests, draft.question, draft.answers, *shared]


def votes(draft: CaseDraft) -> dict[str, set[Any]]:
    return {name: set(given) for name, given in draft.votes.items()}
