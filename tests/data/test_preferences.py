from __future__ import annotations

import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from files import picture, png, row, write_lines, write_parquet

from medrm import read_cases
from medrm.data.case_set import descriptions, read_description, read_set
from medrm.data.phantom import phantom_set as write
from medrm.data.row_tables import dataset_table, row_images
from medrm.data.sources import description_names
from medrm.errors import ConfigError, DataError
from medrm.schema import Case, Turn


def preferred(case: Case, dimension: str = "overall") -> tuple[str, str]:
    """The better and the worse answer."""
    choice = case.labels[dimension].choice
    return case.answers[choice], case.answers[1 - choice]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


PROMPT_FORMS = {
    "strings": {"prompt": "Why?", "chosen": "good", "rejected": "bad"},
    "messages": {
        "prompt": [user("Why?")],
        "chosen": [assistant("good")],
        "rejected": [assistant("bad")],
    },
    "implicit messages": {
        "chosen": [user("Why?"), assistant("good")],
        "rejected": [user("Why?"), assistant("bad")],
    },
    "implicit strings": {"chosen": "Why? good", "rejected": "Why? bad"},
    "implicit strings of like answers": {"chosen": "Why? good", "rejected": "Why? goods"},
    "parts": {
        "prompt": [user([{"type": "image"}, {"type": "text", "text": "Why?"}])],
        "chosen": [assistant([{"type": "text", "text": "good"}])],
        "rejected": [assistant("bad")],
    },
}


@pytest.mark.parametrize("form", PROMPT_FORMS)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_forms_of_trl(tmp_path, form, suffix):
    (tmp_path / "1.png").write_bytes(png(picture(1)))
    row = PROMPT_FORMS[form] | {"images": ["1.png"]}
    path = write_lines(tmp_path / f"rows.{suffix}", [row])
    if suffix == "json":
        path.write_text(json.dumps([row]))
    (case,) = read_cases(path)
    worse = "goods" if "like" in form else "bad"
    assert (case.question, *preferred(case)) == ("Why?", "good", worse)
    assert case.images[0].read() == png(picture(1))
    assert case.labels["overall"].votes == 1


def test_place_of_the_better_answer_tells_nothing(tmp_path):
    rows = [{"prompt": str(i), "chosen": "good", "rejected": "bad"} for i in range(400)]
    cases = read_cases(write_lines(tmp_path / "rows.jsonl", rows))
    first = sum(case.answers[0] == "good" for case in cases)
    assert 160 <= first <= 240
    assert {preferred(case) for case in cases} == {("good", "bad")}


@pytest.mark.parametrize("marked", [True, False])
def test_parquet_rows_keep_their_images_stored(tmp_path, marked):
    rows = [
        {
            "prompt": f"q{i}",
            "chosen": "good",
            "rejected": "bad",
            "image": {"bytes": png(picture(i)), "path": None},
        }
        for i in range(5)
    ]
    cases = read_cases(write_parquet(tmp_path / "r.parquet", rows, "image" if marked else None))
    assert [case.images[0].read() for case in cases] == [png(picture(i)) for i in range(5)]
    assert len({case.images[0].digest for case in cases}) == 5


def test_parquet_with_lists_of_images(tmp_path):
    stored = [{"bytes": png(picture(i)), "path": f"{i}.png"} for i in (1, 2)]
    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad", "images": stored}]
    (case,) = read_cases(write_parquet(tmp_path / "rows.parquet", rows))
    assert [ref.read() for ref in case.images] == [png(picture(1)), png(picture(2))]


def test_rows_that_are_no_comparison_are_set_aside_with_a_reason(tmp_path):
    turns = [user("One?"), assistant("yes"), user("Two?")]
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": turns, "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": [{"role": "system", "content": "Be brief."}, user("q")],
         "chosen": [assistant("good")], "rejected": [assistant("bad")]},
    ]  # fmt: skip
    found = read_set(str(write_lines(tmp_path / "rows.jsonl", rows)))
    assert [case.question for case in found.cases] == ["q", "Two?", "q"]
    assert [(row.case_id, row.reason) for row in found.excluded] == [
        ("row-000002", "chosen and rejected are the same"),
    ]
    conversation, instructed = found.cases[1:]
    assert conversation.context == (Turn("user", "One?"), Turn("assistant", "yes"))
    assert instructed.context == (Turn("system", "Be brief."),)


def test_problems_of_rows_are_raised_together(tmp_path):
    rows = [
        {"prompt": "<image> q", "chosen": "good", "rejected": "bad", "images": []},
        {"prompt": 3, "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "image": "../x.png"},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "case_id": "a"},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "case_id": "a"},
    ]
    with pytest.raises(DataError) as raised:
        read_cases(write_lines(tmp_path / "rows.jsonl", rows))
    message = str(raised.value)
    assert "line 1: the prompt refers to 1 images, 'images' holds 0" in message
    assert "line 2: 'prompt' is int" in message
    assert "line 3: image path '../x.png' leads outside" in message
    assert "line 5: case_id 'a' occurs twice" in message


def test_missing_column(tmp_path):
    row = {"prompt": "q", "chosen": "good", "reject": "bad"}
    with pytest.raises(DataError, match=r"'rejected' is missing.*Did you mean 'reject'"):
        read_cases(write_lines(tmp_path / "rows.jsonl", [row]))


def test_rlaif_v_rows(tmp_path):
    """The published columns of openbmb/RLAIF-V-Dataset."""
    rows = [
        {
            "ds_name": "RLAIF-V",
            "image": {"bytes": png(picture(i)), "path": f"{i}.jpg"},
            "question": "What is shown?",
            "chosen": "good",
            "rejected": "bad",
            "origin_dataset": "VQAv2",
            "origin_split": "{}",
            "idx": str(i),
            "image_path": f"{i}.jpg",
        }
        for i in range(3)
    ]
    cases = read_cases(write_parquet(tmp_path / "part.parquet", rows, "image"))
    assert {preferred(case, "accuracy") for case in cases} == {("good", "bad")}
    assert {case.question for case in cases} == {"What is shown?"}
    assert cases[0].groups == {"source": "VQAv2"}
    assert cases[1].images[0].read() == png(picture(1))


def test_mmedpo_rows(tmp_path):
    """The published columns of aiming-lab/MMedPO."""
    question = {"from": "human", "value": "<image>\nIs there a mass?"}
    row = {
        "id": "slake-1",
        "image": "slake/1.jpg",
        "conversations": [question, {"from": "gpt", "value": "good"}],
        "rejected_conversations": [question, {"from": "gpt", "value": "bad"}],
        "weighted_score": "0.9",
    }
    (tmp_path / "slake").mkdir()
    (tmp_path / "slake" / "1.jpg").write_bytes(b"x")
    path = tmp_path / "slake.json"
    path.write_text(json.dumps([row]))
    (case,) = read_cases(path)
    assert case.question == "Is there a mass?"
    assert preferred(case, "accuracy") == ("good", "bad")
    assert case.images[0].name == "slake/1.jpg"


def test_every_description_is_valid_and_has_a_card(root):
    headings = [
        "## Source",
        "## Licence and access",
        "## De-identification",
        "## How the preferred answers were obtained",
        "## Size",
        "## Known flaws",
        "## Overlap with our benchmarks",
    ]
    assert set(description_names()) >= {"phantom", "med_rewardbench", "rlaif_v", "mmedpo"}
    for description in descriptions():
        if description.form == "phantom":
            continue  # nobody's data: its card says how it is drawn
        folder = root / "data" / description.name
        card = (folder / "README.md").read_text(encoding="utf-8")
        found = [line for line in card.splitlines() if line.startswith("## ")]
        assert [heading for heading in found if heading in headings] == headings, folder


def test_wrong_description_is_refused(tmp_path):
    path = tmp_path / "dataset.yaml"
    path.write_text("name: x\nform: table\nsorce: a/b\nseed: one\n")
    with pytest.raises(ConfigError) as raised:
        read_description(path)
    message = str(raised.value)
    assert "unknown key 'sorce'. Did you mean 'source'?" in message
    assert "seed is 'one'" in message


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_hub_rows_are_read_by_the_columns_of_their_description(tmp_path, monkeypatch):
    rows = [
        {
            "image": {"bytes": png(picture(i)), "path": f"/home/someone/{i}.jpg"},
            "question": "What is shown?",
            "chosen": "good",
            "rejected": "bad",
            "origin_dataset": "VQAv2",
        }
        for i in range(2)
    ]
    path = write_parquet(tmp_path / "part.parquet", rows, "image")
    stored = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    stored.info.download_checksums = {f"hf://datasets/openbmb/RLAIF-V@{COMMIT}/part.parquet": {}}
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return stored

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    by_name, by_id = read_set("rlaif_v"), read_set("openbmb/RLAIF-V-Dataset")
    assert asked == [(("openbmb/RLAIF-V-Dataset",), {"revision": "main", "split": "train"})] * 2
    assert (by_name.name, by_name.revision) == ("rlaif_v", COMMIT)
    assert by_name.digest == by_id.digest
    assert by_name.dimensions == ("accuracy",)
    image = by_name.cases[1].images[0]
    assert (image.name, image.read()) == ("1.jpg", png(picture(1)))


def test_hub_layout_is_read_from_the_snapshot_whose_files_are_links(layout, tmp_path, monkeypatch):
    root = layout(inputs={"GI_tract": [row("q3", 3, image={"bytes": None, "path": "3.png"})]})
    (root / "pair_gt_all" / "parquet" / "3.png").write_bytes(b"stored")
    blobs = tmp_path / "repo" / "blobs"
    snapshot = tmp_path / "repo" / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted((root / "pair_gt_all").rglob("*.*"))):
        file.rename(blobs / str(number))
        link = snapshot / file.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    found = read_set("Nandzy/Med-RewardBench")
    assert (found.name, found.revision, len(found.cases)) == ("med_rewardbench", COMMIT, 3)
    assert {case.case_id: case for case in found.cases}["q3"].images[0].read() == b"stored"
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "empty")
    )
    with pytest.raises(ConfigError, match="holds no pair_gt_all/"):
        read_set("med_rewardbench")


@pytest.mark.parametrize(
    "source", ["med_rewardbench", "Nandzy/Med-RewardBench", "openbmb/RLAIF-V-Dataset", "no/such"]
)
def test_hub_ids_while_offline(source):
    with pytest.raises(ConfigError, match="cannot be had"):
        read_cases(source)


def test_sets_without_a_source_must_be_brought():
    with pytest.raises(DataError, match=r"data/mmedpo/README\.md says"):
        read_cases("mmedpo")


def test_phantom_set_is_drawn_once_and_read_with_its_votes(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "dataset.yaml").write_text("name: mine\nform: phantom\ncases: 12\nseed: 3\n")
    first = read_set(str(folder))
    (drawn,) = (tmp_path / "cache" / "phantom").iterdir()
    monkeypatch.setattr(write, "write_phantom", None)
    again = read_set(str(folder))
    assert (len(first.cases), first.synthetic) == (12, True)
    assert first.digest == again.digest
    assert drawn.name.endswith("seed3-cases12")
    assert first.agreement["accuracy"].annotators == 3
    assert 0.9 < first.ceiling["accuracy"] <= 1.0


@pytest.mark.parametrize("content", ["", "5", "name: x\nform: preferences\ncolumns: [a, b]\n"])
def test_a_description_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError):
        read_description(path)


def test_ids_that_are_numbers_or_stated_by_some_rows(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    rows = [pair | {"case_id": 0}, pair | {"case_id": 1}, pair, pair | {"case_id": ""}]
    cases = read_cases(write_lines(tmp_path / "rows.jsonl", rows))
    assert [case.case_id for case in cases] == ["0", "1", "row-000003", "row-000004"]
    rows = [pair | {"case_id": "row-000002"}, pair]
    with pytest.raises(DataError, match="line 2: case_id 'row-000002' occurs twice"):
        read_cases(write_lines(tmp_path / "rows.jsonl", rows))


def test_some_rows_of_a_table_are_stored_once(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [row(f"q{n}", n) for n in range(4)], "image")
    seen = []
    for _ in range(2):
        data = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "own"))
        table = dataset_table(data.select([1, 3]), "some", tmp_path, tmp_path)
        (image,) = row_images(table, 1, table.rows[1][1], "image")
        assert image.read() == png(picture(3))
        seen.append([Path(name).stat().st_mtime_ns for name in table.files])
    assert seen[0] == seen[1]
