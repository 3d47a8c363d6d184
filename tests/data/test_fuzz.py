"""Every reader has a corpus, and none of its seeded mutations ends in a traceback."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from fuzz_imports import IMPORT_CORPORA
from fuzz_readers import CORPORA, HEADER, MOST_GROWTH, SLOWEST_S, fuzz

from medrm.data.case_set import FORMATS
from medrm.exchange.importers import IMPORTERS
from medrm.exchange.open_source import open_source
from medrm.pipeline.data_import import importer_of


def test_every_format_has_a_corpus() -> None:
    assert set(FORMATS) <= set(CORPORA)


def test_every_importer_has_a_corpus_that_it_reads(tmp_path: Path) -> None:
    assert set(IMPORTERS) == {corpus.importer for corpus in IMPORT_CORPORA.values()}
    for name, corpus in IMPORT_CORPORA.items():
        opened = open_source(corpus.write(tmp_path / name / "corpus"))
        assert importer_of(opened).name == corpus.importer


def check(reader: str, mutations: int) -> None:
    level = logging.getLogger("medrm").level
    logging.getLogger("medrm").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
        outcome = fuzz(reader, mutations)
    logging.getLogger("medrm").setLevel(level)
    shown = f"{HEADER}\n{outcome.line()}"
    assert not outcome.tracebacks, f"{shown}\n{outcome.tracebacks[0]}"
    sets_aside = reader in ("images", "medical", "vqa", *IMPORT_CORPORA)  # an image, a row
    assert outcome.refused or sets_aside, shown
    assert outcome.growth < MOST_GROWTH, shown
    assert outcome.slowest_s < SLOWEST_S, shown


@pytest.mark.slow
@pytest.mark.parametrize("reader", CORPORA)
def test_a_sample_of_mutations(reader: str) -> None:
    check(reader, 12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("reader", CORPORA)
def test_ten_thousand_mutations(reader: str) -> None:
    check(reader, 10_000)
