"""The corpora of `medrm data import`: exports of every form, imported and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tool_exports
from files import picture, png, vote, write_lines, write_parquet
from fuzz_corpora import Corpus

from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.errors import MedrmError
from medrm.exchange.mapping_file import load_mapping, read_mapping
from medrm.exchange.open_source import open_source
from medrm.exchange.write_votes import write_votes
from medrm.pipeline.data_import import importer_of

SHEET: list[dict[str, Any]] = [
    {
        "Fall-Nr.": "007",
        "Bild": "1.png",
        "Frage": "Só?",
        "Antwort 1": "Nein.",
        "Antwort 2": "Ja.",
        "Leser": reader,
        "Genauigkeit": said,
        "Gesamturteil": "Modell 1",
        "Dauer": "1:05",
        "Kommentar": "unscharf",
    }
    for reader, said in (("Ada", "="), ("Ben", "Modell 2"))
]
MAPPING = """\
columns: {case_id: Fall-Nr., image: Bild, question: Frage, annotator: Leser, seconds: Dauer,
  answer_left: Antwort 1, answer_right: Antwort 2}
votes: [{column: Genauigkeit, dimension: accuracy}]
values: {"=": tie, Modell 2: strongly_right}
order: {column: Gesamturteil, values: {Modell 1: A}}
ignore: [Kommentar]
"""


@dataclass(frozen=True)
class ImportCorpus(Corpus):
    """A file that is imported.

    Attributes:
        importer: that is to recognise it as it is.
    """

    importer: str = "sheet"

    def read(self, path: Path) -> None:
        """Imports a file, by the mapping beside it where there is one, and reads the set.

        Raises:
            MedrmError: it is refused.
            AssertionError: what was written cannot be read.
        """
        beside = path.with_name("mapping.yaml")
        opened = open_source(path, None, read_mapping(beside) if beside.exists() else None)
        importer = importer_of(opened)
        if importer.suggest is not None:
            load_mapping(importer.suggest(opened).text)
        output = path.parent.parent / "set"
        write_votes(output, opened, importer, overwrite=True)
        try:
            read_set(str(output))
        except MedrmError as error:
            raise AssertionError(f"a set that was imported cannot be read: {error}") from error


def _file(name: str, content: Callable[[], Any]) -> Callable[[Path], Path]:
    """Returns what writes an export below a folder."""

    def write(root: Path) -> Path:
        root.mkdir(parents=True)
        (root / "1.png").write_bytes(png(picture(1)))
        path, export = root / name, content()
        if name.endswith(".jsonl"):
            return write_lines(path, export)
        if name.endswith(".parquet"):
            return write_parquet(path, export)
        text = export if isinstance(export, str) else json.dumps(export)
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write


def _workbook(root: Path, name: str, engine: str) -> Path:
    root.mkdir(parents=True)
    (root / "1.png").write_bytes(png(picture(1)))
    pd.DataFrame(SHEET).to_excel(root / name, index=False, engine=engine)
    return root / name


def _mapped(root: Path) -> Path:
    path = _file("sheet.csv", lambda: pd.DataFrame(SHEET).to_csv(sep=";", index=False))(root)
    path.with_name("mapping.yaml").write_text(MAPPING, encoding="utf-8")
    return path


def _reader_sheet(root: Path) -> Path:
    """A sheet of `medrm data export` that a reader has filled."""
    source = root.parent / "exported"
    (source / "images").mkdir(parents=True)
    (source / "images" / "1.png").write_bytes(png(picture(1)))
    votes = write_lines(source / "votes.jsonl", [vote(votes={"accuracy": "A", "overall": "tie"})])
    argv = ["data", "export", str(votes), "--to", "sheet", "--table", "csv", "--with_votes"]
    assert main([*argv, "--output", str(root)]) == 0
    (path,) = root.glob("*.csv")
    return path


_JSON = (".json", ".jsonl")
_TASKS = tool_exports.project
IMPORT_CORPORA: dict[str, ImportCorpus] = {
    f"import_{name}": corpus
    for name, corpus in {
        "votes": ImportCorpus(
            _file("v.jsonl", lambda: [vote(image="1.png")]), _JSON, None, "votes"
        ),
        "label_studio": ImportCorpus(_file("p.json", _TASKS), _JSON, None, "label_studio"),
        "exported_project": ImportCorpus(
            _file("p.json", tool_exports.ordered_project), _JSON, None, "exported_project"
        ),
        "label_studio_ranks": ImportCorpus(
            _file("p.json", tool_exports.ranked_project), _JSON, None, "label_studio"
        ),
        "label_studio_min": ImportCorpus(
            _file("m.json", lambda: tool_exports.flat(_TASKS())), _JSON, None, "label_studio"
        ),
        "label_studio_csv": ImportCorpus(
            _file("t.csv", lambda: tool_exports.table(_TASKS())), (".csv",), None, "label_studio"
        ),
        "argilla": ImportCorpus(
            _file("flat.json", tool_exports.argilla_flat), _JSON, None, "argilla"
        ),
        "argilla_nested": ImportCorpus(
            _file("nested.json", tool_exports.argilla_nested), _JSON, None, "argilla"
        ),
        "argilla_parquet": ImportCorpus(
            _file("flat.parquet", tool_exports.argilla_flat), (".parquet",), None, "argilla"
        ),
        "prodigy": ImportCorpus(_file("out.jsonl", tool_exports.prodigy), _JSON, None, "prodigy"),
        "doccano": ImportCorpus(_file("anna.jsonl", tool_exports.doccano), _JSON, None, "doccano"),
        "sheet_csv": ImportCorpus(
            _file("s.csv", lambda: pd.DataFrame(SHEET).to_csv(sep=";", index=False)), (".csv",)
        ),
        "sheet_json": ImportCorpus(_file("s.json", lambda: SHEET), _JSON),
        "sheet_xlsx": ImportCorpus(lambda root: _workbook(root, "s.xlsx", "openpyxl"), (".xlsx",)),
        "sheet_ods": ImportCorpus(lambda root: _workbook(root, "s.ods", "odf"), (".ods",)),
        "mapping": ImportCorpus(_mapped, (".yaml",)),
        "reader_sheet": ImportCorpus(_reader_sheet, (".csv", ".jsonl"), None, "reader_sheet"),
    }.items()
}
"""At least one for each importer of `medrm.exchange.importers.IMPORTERS`."""
