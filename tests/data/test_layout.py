from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest
from files import label, picture, png, row, vote, write_lines

from medrm import read_cases
from medrm.data.case_set import read_set
from medrm.data.phantom.phantom_set import write_phantom
from medrm.errors import DataError


def test_votes_beside_the_layout_are_named_as_not_read(layout, caplog):
    root = layout()
    with caplog.at_level(logging.WARNING, logger="medrm"):
        read_set(str(root))
        assert not caplog.records
        write_lines(root / "votes.jsonl", [vote("never read")])
        read_set(str(root))
    (record,) = caplog.records
    assert f"{root / 'votes.jsonl'} is not read" in record.getMessage()
    caplog.clear()
    write_phantom(root / "phantom", cases=2, seed=3)  # both say the same
    read_set(str(root / "phantom"))
    assert not caplog.records


def test_labels_and_inputs_are_joined(layout):
    root = layout()
    write_lines(root / "votes.jsonl", [vote("never read")])
    (root / "dataset.json").write_text(
        json.dumps({"name": "made up", "synthetic": True, "ceiling": {"accuracy": 0.9}})
    )
    found = read_set(str(root))
    cases = {case.case_id: case for case in found.cases}
    assert set(cases) == {"q1", "q2", "q3"}
    assert cases["q2"].labels["accuracy"].shares == (0.0, 0.0, 1.0)
    assert set(cases["q1"].labels) == {"accuracy"}
    assert cases["q3"].groups["organ"] == "gastrointestinal_tract"
    assert "modality" not in cases["q3"].groups, "modality_type repeats an organ"
    assert cases["q1"].images[0].read() == png(picture(1))
    assert pickle.loads(pickle.dumps(cases["q2"].images[0])).read() == png(picture(2))
    assert (found.synthetic, found.ceiling) == (True, {"accuracy": 0.9})


def test_a_changed_file_is_read_anew(layout):
    read_cases(layout())
    root = layout(inputs={"brain": [row("q1", 1), row("q2", 2, question="Changed?")]})
    assert {case.case_id: case for case in read_cases(root)}["q2"].question == "Changed?"


def test_whole_number_ids_meet_text_ids(layout):
    root = layout({"brain": [label(7, accuracy="A")]}, {"brain": [row("7", 1)]})
    assert "7" in {case.case_id for case in read_cases(root)}


def test_modality_that_is_no_organ_is_kept(layout):
    root = layout(inputs={"GI_tract": [row("q3", 3, modality_type="CT")]})
    assert {case.groups.get("modality") for case in read_cases(root)} == {None, "CT"}
    root = layout(inputs={"GI_tract": [row("q3", 3, modality_type="GI_tract", modality="MR")]})
    assert {case.groups.get("modality") for case in read_cases(root)} == {None, "MR"}


def test_every_problem_of_the_join_is_reported(layout):
    root = layout(
        {
            "brain": [label("q1", accuracy="C"), label("q2"), label("q2"), label("lost")],
            "lung": [label("q1", accuracy="a")],
            "eye": [label("q9")],
        },
        {
            "brain": [row("q1", 1), row("q2", 1), row("new", 1)],
            "lung": [row("q1", 1)],
            "heart": [row("q8", 1)],
        },
    )
    with pytest.raises(DataError) as raised:
        read_cases(root)
    message = str(raised.value)
    for part in (
        "'accuracy' is 'C'; accepted are 'A', 'B' or 'tie'",
        "'accuracy' is 'a'",
        "question_id 'q2' occurs twice",
        "'lost' has no row in brain.parquet",
        "'new' has no label in brain.jsonl",
        "question_id 'q1' occurs in brain and in lung",
        "eye.jsonl has no parquet/eye.parquet",
        "parquet/heart.parquet has no heart.jsonl",
    ):
        assert part in message


def test_missing_column_names_the_nearest(layout):
    wrong = row("q3", 3)
    wrong["answer_1_text"] = wrong.pop("answer1_text")
    with pytest.raises(DataError, match=r"'answer1_text' is missing.*Did you mean 'answer_1_text'"):
        read_cases(layout(inputs={"GI_tract": [wrong]}))


def test_images_by_path_lie_beside_the_parquet_file(layout):
    root = layout(inputs={"GI_tract": [row("q3", 3, image={"bytes": None, "path": "far/3.png"})]})
    folder = root / "pair_gt_all" / "parquet" / "far"
    folder.mkdir()
    (folder / "3.png").write_bytes(b"stored")
    cases = {case.case_id: case for case in read_cases(root)}
    assert cases["q3"].images[0].read() == b"stored"
    outside = {"bytes": None, "path": "../../../secret.png"}
    with pytest.raises(DataError, match="leads outside the data folder"):
        read_cases(layout(inputs={"GI_tract": [row("q3", 3, image=outside)]}))


def test_missing_image_stays_in_the_denominator(layout):
    inputs = {"GI_tract": [row("q3", 3), row("q4", 3, image=None)]}
    root = layout({"GI_tract": [label("q3"), label("q4")]}, inputs)
    case = {case.case_id: case for case in read_cases(root)}["q4"]
    assert case.images[0].problem == "no image is stored"


def test_damaged_parquet_and_empty_folder(layout, tmp_path):
    root = layout()
    (root / "pair_gt_all" / "parquet" / "brain.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="no readable parquet file"):
        read_cases(root)
    (tmp_path / "none" / "pair_gt_all").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no <organ>\.jsonl"):
        read_cases(tmp_path / "none")


def test_the_inside_of_a_released_benchmark_is_named(tmp_path: Path) -> None:
    (tmp_path / "pair_gt_all").mkdir()
    with pytest.raises(DataError, match="Give the folder above it"):
        read_cases(tmp_path / "pair_gt_all")
