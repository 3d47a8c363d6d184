"""A folder as the hub keeps data sets: parquet with images inside, and a card; all stays here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import yaml

from medrm.exchange.exported import Export, safe_names
from medrm.exchange.exporters.preference_pairs import LOST, Pair, preference_pairs
from medrm.exchange.exporters.trainer_rows import trl_row

_ROWS_AT_ONCE = 64
_GROUPS = ("organ", "department", "modality")

_PRIVATE = (
    "Patient, study, source and the names of readers are left out: nothing in a row says which "
    "cases belong to one patient, so split the set before it is published, not after."
)


def write_hub_folder(export: Export) -> None:
    """Writes a configuration for each dimension, and the card."""
    configurations = []
    for dimension, name in safe_names(export.dimensions).items():
        file = f"data/{name}.parquet"
        _write_table(export, dimension, file)
        data_files = [{"split": "train", "path": file}]
        configurations.append({"config_name": name, "data_files": data_files})
    export.notes += [LOST, _PRIVATE]
    export.write("README.md", [_card(export, configurations).encode()])


def _write_table(export: Export, dimension: str, file: str) -> None:
    import pyarrow as pa
    from datasets import Features, Image, List, Value

    from medrm.data.parquet_files import parquet_writer

    text, share = Value("string"), Value("float64")
    message = {"role": text, "content": List({"type": text, "text": text})}
    features: dict[str, Any] = {
        "case_id": text,
        "images": List(Image()),
        **dict.fromkeys(("prompt", "chosen", "rejected"), List(message)),
        "dimension": text,
        **dict.fromkeys(("chosen_share", "tie_share", "rejected_share"), share),
        "vote_count": Value("int64"),
        **dict.fromkeys(_GROUPS, text),
    }
    schema = Features(features).arrow_schema
    path = export.folder / file
    path.parent.mkdir(exist_ok=True)
    with parquet_writer(path, schema, durable=False) as writer:
        rows = _rows(export, dimension)
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
            export.rows[file] += len(batch)


def _rows(export: Export, dimension: str) -> Iterator[dict[str, Any]]:
    for pair in preference_pairs(export, dimension):
        yield {
            "case_id": pair.case_id,
            "images": [
                {"bytes": export.images.content(ref), "path": f"{ref.digest}"}
                for ref in pair.draft.images
            ],
            **trl_row(pair, as_parts=True),
            "dimension": dimension,
            **_shares(pair),
            **{name: pair.draft.groups.get(name) for name in _GROUPS},
        }


def _shares(pair: Pair) -> dict[str, Any]:
    first, tie, second = pair.label.shares
    chosen, rejected = (first, second) if pair.label.choice == 0 else (second, first)
    shares = {"chosen_share": chosen, "tie_share": tie, "rejected_share": rejected}
    return shares | {"vote_count": pair.label.votes}


def _card(export: Export, configurations: list[dict[str, Any]]) -> str:
    head = {
        "license": "other",
        "license_name": "not-stated-yet",
        "tags": ["medical", "preference", "reward-model", "trl"],
        "task_categories": ["image-text-to-text" if export.facts.images[1] else "text-generation"],
        "configs": configurations,
    }
    rows = "\n".join(f"| `{file}` | {count:,} |" for file, count in export.rows.items())
    left_out = "\n".join(f"- {reason}: {n:,}" for reason, n in export.left_out.most_common())
    notes = "\n".join(f"- {note}" for note in export.notes)
    return _CARD.format(
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True),
        rows=rows,
        left_out=left_out or "- nothing",
        notes=notes,
    )


_CARD = """\
---
{head}---

# Preferences of experts on answers about medical images

**Before this is published, answer:** Under which licence may the images, the questions and the
answers be passed on, and who has agreed to it? Do images, texts or the ids of cases show who a
patient is? Until that is settled the licence above says `not-stated-yet`, and the folder should
stay where it is.

For research only. Not for diagnosis, treatment or any other care of patients.

Each configuration is a dimension on which experts compared answers, in TRL's form: `prompt`,
`chosen` and `rejected` as messages, `images`; with the shares of the votes on the pair.

| file | rows |
| --- | --- |
{rows}

Left out:

{left_out}

What these rows do not say:

{notes}
"""
