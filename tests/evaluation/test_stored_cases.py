"""What an evaluation keeps of the cases that it judged."""

from __future__ import annotations

import dataclasses
import io
import json
from functools import partial
from pathlib import Path

import pytest
from mock_scorers import make_cases, ranked_case
from PIL import Image

from medrm.data.case_set import digest_of
from medrm.data.images import bytes_image, decode
from medrm.errors import DataError
from medrm.evaluation.records.stored_cases import read_stored_cases, write_cases
from medrm.schema import Case, ImageRef


def picture(colour: str, size: tuple[int, int] = (1600, 800)) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return bytes_image(f"{colour}.png", partial(bytes, buffer.getvalue()))


def pictured() -> list[Case]:
    broken = bytes_image("broken.png", partial(bytes, b"no image"))
    gone = ImageRef("gone.png", "", bytes, "there is no file 'gone.png'")
    images = [(picture("red"),), (picture("red"), picture("blue", (30, 20))), (broken,), (gone,)]
    cases = make_cases("AtB-", "ABAB")
    cases = [dataclasses.replace(c, images=i) for c, i in zip(cases, images, strict=True)]
    return [*cases, ranked_case(1, best=2)]


def test_cases_come_back_as_they_were(tmp_path: Path) -> None:
    cases = pictured()
    odd = dataclasses.replace(cases[0], case_id='a "b"\n', question="</script> \ud800 ü", images=())
    write_cases(tmp_path, [*cases, odd], images=True)
    stored = read_stored_cases(tmp_path)
    assert [dataclasses.replace(case, images=()) for case in stored] == [
        dataclasses.replace(case, images=()) for case in [*cases, odd]
    ]
    assert digest_of(stored[:-1]) == digest_of(cases)


def test_small_copies_of_the_images(tmp_path: Path) -> None:
    cases = pictured()
    write_cases(tmp_path, cases, images=True)
    stored = [case.images for case in read_stored_cases(tmp_path)]
    assert decode(stored[0][0]).size == (384, 192)
    assert decode(stored[1][1]).size == (30, 20)  # never enlarged
    assert decode(stored[1][1]).getpixel((5, 5))[2] > 200
    assert "broken.png" in str(stored[2][0].problem)
    assert stored[3][0].problem == "there is no file 'gone.png'"
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_copies_of_other_cases_do_not_stay(tmp_path: Path) -> None:
    cases = pictured()
    write_cases(tmp_path, cases, images=True)
    own = tmp_path / "images" / "mine.webp"
    own.touch()
    write_cases(tmp_path, cases[:1], images=True)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        *("mine.webp", f"{cases[0].images[0].digest}.webp")
    }
    own.unlink()
    write_cases(tmp_path, cases, images=False)
    assert not (tmp_path / "images").exists()
    problems = [ref.problem for case in read_stored_cases(tmp_path) for ref in case.images]
    assert all(problems)


def test_a_digest_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_cases(tmp_path / "e", make_cases("A"), images=False)
    (tmp_path / "secret.webp").write_bytes(b"secret")
    path = tmp_path / "e" / "cases.jsonl"
    line = path.read_text().replace(
        '"images": []', '"images": [{"name":"x","digest":"../../secret"}]'
    )
    path.write_text(line)
    (ref,) = read_stored_cases(tmp_path / "e")[0].images
    assert ref.problem == "no copy of it is kept with the evaluation"


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cases at"):
        read_stored_cases(tmp_path)
    for line in ("{}", '{"case_id": "a", "labels": 3}', "[]"):
        (tmp_path / "cases.jsonl").write_text(line + "\n")
        with pytest.raises(DataError, match="line 1, is not a case"):
            read_stored_cases(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"case_id": 5},
        {"question": None},
        {"cluster": 7},
        {"answers": ["a"]},
        {"answers": [1, 2]},
        {"groups": ["organ"]},
        {"groups": {"organ": 5}},
        {"labels": {"overall": {"shares": ["a", "b", "c"], "votes": 1}}},
        {"labels": {"overall": {"shares": [1, 0], "votes": 1}}},
        {"labels": {"overall": {"shares": [1, 0, 0], "votes": "1"}}},
        {"labels": {"overall": {"rankings": []}}},
        {"labels": {"overall": {"rankings": [[[0], [9]]]}}},
        {"images": [{"name": "x", "digest": 5}]},
        {"other": 1},
    ],
)
def test_a_line_that_is_no_case_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    write_cases(tmp_path, make_cases("AB"), images=False)
    path = tmp_path / "cases.jsonl"
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{json.dumps(json.loads(second) | change)}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2, is not a case"):
        read_stored_cases(tmp_path)


def test_only_small_copies_are_read(tmp_path: Path) -> None:
    write_cases(tmp_path, pictured()[:2], images=True)
    kept = {path.stem: path for path in (tmp_path / "images").iterdir()}
    red = read_stored_cases(tmp_path)[0].images[0]
    with kept[red.digest].open("ab") as file:
        file.truncate(2**20 + 1)
    assert "no small copy" in str(read_stored_cases(tmp_path)[0].images[0].problem)
    path = tmp_path / "cases.jsonl"
    outside = path.read_text(encoding="utf-8").replace(red.digest, "../images/" + red.digest)
    path.write_text(outside, encoding="utf-8")
    assert "no copy of it" in str(read_stored_cases(tmp_path)[0].images[0].problem)
