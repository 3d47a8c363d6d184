"""Public sets of pairs and rated answers, each read from rows in the columns that are published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from files import picture, png, write_parquet
from row_samples import PUBLIC_ROWS, write_rows

from medrm.data.case_set import CaseSet, named_description, read_set
from medrm.data.readers.row_forms import ROW_FORMS
from medrm.errors import DataError
from medrm.schema import Case, PairLabel, RankingLabel, Turn
from medrm.scorer.caller_cases import row_case


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads a set by its name from the hub, which holds its rows; keeps what was asked of it."""

    def read(name: str, rows: list[dict[str, Any]]) -> tuple[CaseSet, dict[str, Any]]:
        path = write_parquet(tmp_path / f"{name}.parquet", rows)
        stored = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "own"))
        asked: dict[str, Any] = {}

        def load_dataset(hub_id: str, **options: Any) -> datasets.Dataset:
            asked.update(options, hub_id=hub_id)
            return stored

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return read_set(name), asked

    return read


def ordered(case: Case, dimension: str) -> list[set[str]]:
    label = case.labels[dimension]
    assert isinstance(label, RankingLabel)
    return [{case.answers[index] for index in level} for level in label.rankings[0]]


def preferred(case: Case) -> str:
    label = case.labels["overall"]
    assert isinstance(label, PairLabel)
    return case.answers[label.choice] if isinstance(label.choice, int) else str(label.choice)


def test_ultrafeedback(hub: Any) -> None:
    found, asked = hub("ultrafeedback", PUBLIC_ROWS["ultrafeedback"])
    assert asked["hub_id"] == "openbmb/UltraFeedback"
    assert asked["revision"].startswith("40b43656")
    (case,) = found.cases
    assert ordered(case, "overall") == [{"good"}, {"fair", "also fair"}, {"bad"}]
    assert (found.dimensions, case.groups) == (("overall", "helpfulness"), {"source": "made up"})


def test_helpsteer3(hub: Any) -> None:
    found, asked = hub("helpsteer3", PUBLIC_ROWS["helpsteer3"])
    assert asked["data_files"] == ["preference/train.jsonl.gz"]
    graded, alone = found.cases
    assert graded.context == (Turn("user", "Who?"), Turn("assistant", "me"))
    label = graded.labels["overall"]
    assert isinstance(label, PairLabel)
    assert label.votes == 3
    assert label.shares[1] > 0
    assert (preferred(graded), preferred(alone)) == ("good", "good")
    assert [case.groups["language"] for case in (graded, alone)] == ["english", "german"]


def test_a_file_of_helpsteer3_is_known_by_its_columns(tmp_path: Path) -> None:
    case = read_set(str(write_rows(tmp_path, PUBLIC_ROWS["helpsteer3"]))).cases[0]
    assert case.groups == {"domain": "general", "language": "english"}


def test_votes_of_helpsteer3_keep_strength_and_reason() -> None:
    votes = ROW_FORMS["graded_pairs"].votes
    assert votes is not None
    cast = votes(PUBLIC_ROWS["helpsteer3"][0], "overall")["overall"]
    assert [(vote.value, vote.strength, vote.reason) for vote in cast] == [
        (1, "strongly", "Clear."),
        (1, "slightly", None),
        ("tie", None, "Alike."),
    ]
    for score in (4, "2", None, True, 0.5):
        with pytest.raises(DataError, match="accepted are -3 to 3"):
            votes({"individual_preference": [{"score": score}]}, "overall")
        with pytest.raises(DataError, match="accepted are -3 to 3"):
            votes({"individual_preference": [score]}, "overall")


def test_llava_critic(hub: Any) -> None:
    image = {"image": {"bytes": png(picture(1)), "path": "a"}}
    found, asked = hub("llava_critic", [row | image for row in PUBLIC_ROWS["llava_critic"]])
    assert asked["data_files"] == ["pairwise/train-*.parquet"]
    for case in found.cases:
        assert case.question == "What is\nseen?"
        assert set(case.answers) == {"A mass [left].", "Nothing."}
        assert case.images[0].read() == png(picture(1))
    assert [preferred(case) for case in found.cases] == ["A mass [left].", "Nothing.", "tie"]
    assert [row.reason for row in found.excluded] == [
        "its verdict is not understood; accepted are one of the responses, and a tie",
        "its text has no question and two responses, each in brackets",
    ]


def test_vlfeedback_lies_beside_its_description(tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "set"
    write_rows(folder, PUBLIC_ROWS["vlfeedback"]).rename(folder / "vlfeedback_80k.jsonl")
    (folder / "merged_images").mkdir()
    (folder / "merged_images" / "1.jpg").write_bytes(png(picture(2)))
    shutil.copy(root / "data" / "vlfeedback" / "dataset.yaml", folder)
    found = read_set(str(folder))
    (case,) = found.cases
    assert (found.name, found.dimensions) == ("vlfeedback", ("helpfulness", "visual_faithfulness"))
    assert ordered(case, "helpfulness") == [{"good"}, {"fair"}, {"bad"}]
    assert case.images[0].read() == png(picture(2))
    with pytest.raises(DataError, match=r"data/vlfeedback/README\.md says"):
        read_set("vlfeedback")
    path = write_rows(folder, [PUBLIC_ROWS["vlfeedback"][0] | {"id": "../../1"}])
    path.rename(folder / "vlfeedback_80k.jsonl")
    with pytest.raises(DataError, match="leads outside the data folder"):
        read_set(str(folder))


def test_score_asks_what_is_asked_in_a_graded_pair() -> None:
    case = row_case(PUBLIC_ROWS["helpsteer3"][0], 1)
    assert (case.question, case.answers) == ("Why?", ("bad", "good"))
    assert [turn.text for turn in case.context] == ["Who?", "me"]


@pytest.mark.parametrize("name", PUBLIC_ROWS)
def test_what_was_not_seen_is_said(name: str, root: Path) -> None:
    """A revision is a commit, or said not to be pinned."""
    text = (root / "data" / name / "dataset.yaml").read_text(encoding="utf-8")
    assert len(named_description(name).revision) == 40 or "revision: main  # not pinned" in text
