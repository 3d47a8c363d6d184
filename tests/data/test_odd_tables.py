"""Tables as other programs write them: paths with signs, Arrow types, bombs, doubled keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import picture, png, vote, write_lines

from medrm.data import parquet_files
from medrm.data.case_set import read_cases, read_set
from medrm.data.lint import stored_findings
from medrm.data.readers.unlabelled import count_rows, read_rows
from medrm.errors import DataError

STORED = {"bytes": png(picture(1)), "path": None}
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LARGE = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])


def write_pairs(path: Path, images: Any = None, kind: Any = None, **options: Any) -> Path:
    """Three preference rows; `images` is the cell of each."""
    columns = {"prompt": ["q1", "q2", "q3"], "chosen": ["good"] * 3, "rejected": ["bad"] * 3}
    table = pa.table(columns | options.pop("columns", {}))
    if kind is not None:
        table = table.append_column("images", pa.array([images] * 3, kind))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(
    "name",
    ["train[1].parquet", "set*/t.parquet", "dir[v2]/t.parquet", "a::b.parquet", "{a,b}?.PARQUET"],
)
def test_paths_are_paths(tmp_path: Path, name: str) -> None:
    for decoy in ("train1.parquet", "setx/t.parquet", "dirv/t.parquet", "ax.parquet"):
        write_pairs(tmp_path / decoy, columns={"prompt": ["other"] * 3})
    path = write_pairs(tmp_path / name)
    assert [case.question for case in read_cases(path)] == ["q1", "q2", "q3"]
    assert count_rows([path]) == len(list(read_rows([path]))) == 3


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ([STORED], pa.list_(STRUCT)),
        ([STORED], pa.large_list(STRUCT)),
        ([STORED], pa.list_(LARGE)),
        ([STORED], pa.large_list(LARGE)),
        ([STORED], pa.list_(STRUCT, 1)),
        (STORED, STRUCT),
        (STORED["bytes"], pa.binary()),
        ([STORED["bytes"]], pa.large_list(pa.large_binary())),
        (["1.png"], pa.large_list(pa.large_string())),
    ],
    ids=str,
)
def test_images_are_read_from_every_arrow_type(tmp_path: Path, cell: Any, kind: Any) -> None:
    (tmp_path / "1.png").write_bytes(STORED["bytes"])
    cases = read_cases(write_pairs(tmp_path / "t.parquet", cell, kind))
    assert [[ref.read() for ref in case.images] for case in cases] == [[STORED["bytes"]]] * 3


def test_a_list_that_lacks_an_image_keeps_its_case(tmp_path: Path) -> None:
    cases = read_cases(write_pairs(tmp_path / "t.parquet", [STORED, None], pa.list_(STRUCT)))
    assert [ref.problem for ref in cases[0].images] == [None, "no image is stored"]


def test_categories_are_texts(tmp_path: Path) -> None:
    prompts = pa.array(["q1", "q2", "q1"]).dictionary_encode()
    cases = read_cases(write_pairs(tmp_path / "t.parquet", columns={"prompt": prompts}))
    assert [case.question for case in cases] == ["q1", "q2", "q1"]


def test_a_small_file_that_holds_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that stand once in the file, and a column that is compressed a thousandfold."""
    monkeypatch.setattr(parquet_files, "ALWAYS_HELD", 2**20)
    monkeypatch.setattr(parquet_files, "_BATCH_BYTES", 2**18)
    largest: list[int] = []
    check = parquet_files._check_held
    monkeypatch.setattr(
        parquet_files, "_check_held", lambda held, *rest: (largest.append(held), check(held, *rest))
    )
    for text, rows in (("x" * 200_000, 40), ("y" * 4_000_000, 1)):
        table = pa.table({name: [text] * rows for name in ("prompt", "chosen", "rejected")})
        path = tmp_path / f"bomb-{rows}.parquet"
        pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**30)
        assert path.stat().st_size < 10_000
        with pytest.raises(DataError, match="at most 200 times the size of the file"):
            read_cases(path)
    assert largest[-2] < 2 * 2**20


@pytest.mark.parametrize("checked", [True, False])
def test_a_flipped_byte_is_a_message_or_another_text(tmp_path: Path, checked: bool) -> None:
    path = write_pairs(
        tmp_path / "t.parquet",
        [STORED],
        pa.list_(STRUCT),
        write_page_checksum=checked,
        write_statistics=False,
    )
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    flips = range(8, len(whole), 101)
    refused = []
    for place in flips:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            cases = read_cases(path)
        except DataError:
            refused.append(place)
        else:
            assert len(cases) == 3
    of_pages = [place for place in flips if place < footer]
    assert len(of_pages) >= 10
    assert not checked or len(set(of_pages) & set(refused)) > 0.8 * len(of_pages)


def test_a_doubled_key_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "votes.jsonl", [vote(images=[], image=...)])
    doubled = path.read_text().replace('{"accuracy": "A"}', '{"accuracy": "A", "accuracy": "B"}')
    path.write_text(doubled)
    with pytest.raises(DataError, match=r"line 1: .*key 'accuracy' stands twice in one object"):
        read_cases(path)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (b'{"a": ' * 200_000 + b"1" + b"}" * 200_000, "nested too deeply"),
        (b'{"ceiling": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"name": "\\ud83d"}', "half a character"),
        ('{"name": "é"}'.encode("latin-1"), "byte 10 is no UTF-8"),
        (b'{"ceiling": {"overall": "high"}}', "ceiling"),
        (b'{"synthetic": "yes"}', "synthetic"),
    ],
)
def test_what_dataset_json_may_not_say(tmp_path: Path, written: bytes, problem: str) -> None:
    write_lines(tmp_path / "votes.jsonl", [vote(images=[], image=...)])
    (tmp_path / "dataset.json").write_bytes(written)
    with pytest.raises(DataError, match=problem):
        read_set(str(tmp_path))


def test_too_much_of_anything_is_refused_shortly(tmp_path: Path) -> None:
    many = {f"dimension {number}": "A" for number in range(100_000)}
    texts = {"an id": vote("x" * 10_000_000), "dimensions": vote(votes=many)}
    texts["a dimension"] = vote(votes={"d" * 1_000_000: "A"})
    for title, row in texts.items():
        path = write_lines(tmp_path / f"{title}.jsonl", [row])
        with pytest.raises(DataError) as raised:
            read_cases(path)
        assert len(str(raised.value)) < 1000, title
    names = [{f"d{row}-{number}": "A" for number in range(100)} for row in range(20)]
    rows = [vote(f"c{n}", image=..., images=[], votes=votes) for n, votes in enumerate(names)]
    with pytest.raises(DataError, match="dimensions"):
        read_cases(write_lines(tmp_path / "spread.jsonl", rows))


def test_lint_reads_the_same_tables(layout: Any) -> None:
    findings = stored_findings(str(layout()))
    assert findings["modality_type"] == [
        "GI_tract.parquet: modality_type is 'brain' in 1 of 1 rows"
    ]
    assert json.dumps(findings)


def test_the_same_fault_in_many_rows_is_one_line(tmp_path: Path) -> None:
    rows = [vote(f"c{n}", image=..., images=[], votes={"overall": "a"}) for n in range(400)]
    with pytest.raises(DataError) as raised:
        read_cases(write_lines(tmp_path / "votes.jsonl", rows))
    title, line = str(raised.value).splitlines()
    assert "has 400 problems" in title
    assert line.startswith("- line 1 (case 'c0'): 'overall' is 'a'; accepted are 'A', 'B', 'tie'")
    assert line.endswith("(400 times, also line 2 (case 'c1'), line 3 (case 'c2'), ...)")


def test_a_set_without_a_case_says_why(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "same", "rejected": "same"} for _ in range(50)]
    with pytest.raises(DataError, match="50 rows are set aside") as raised:
        read_cases(write_lines(tmp_path / "rows.jsonl", rows))
    assert "chosen and rejected are the same (50 times" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2


def test_paths_without_a_type_are_no_fault(tmp_path: Path) -> None:
    """A column of nulls has no type, and pyarrow cannot cast a struct that holds one."""
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.null())]))
    cases = read_cases(write_pairs(tmp_path / "t.parquet", [STORED, STORED], kind))
    assert [len(case.images) for case in cases] == [2, 2, 2]
