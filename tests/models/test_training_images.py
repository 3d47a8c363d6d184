"""The digests of training images: their file, what a contract says of them, what is published."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medrm.integrity import damage, seal
from medrm.models.adapter_config import config_bytes, read_adapter_config, write_adapter_config
from medrm.models.adapter_files import is_needed
from medrm.models.published_contract import images_of, published_files
from medrm.models.training_images import (
    DIGESTS_FILE,
    KnownImages,
    digests_of,
    file_of,
    record_of,
    write_digests,
)

GOLDEN = Path(__file__).parents[1] / "golden"
PIXELS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(50)]


def adapter_of(run: Path, images: KnownImages, data: dict[str, str] | None = None) -> Path:
    """Returns an adapter folder, as far as its contract goes, in a run folder."""
    saved = run / "adapter"
    saved.mkdir(parents=True)
    contract = read_adapter_config(GOLDEN / "reward_adapter")
    contract = replace(contract, training_images=record_of(images), training_pixel_digests=())
    write_adapter_config(saved, contract)
    write_digests(run, images)
    manifest = {"config": {"init_adapter": None}, "data": {"train": data or {"name": "votes"}}}
    (run / "run.json").write_text(json.dumps(manifest))
    return saved


def test_the_file_is_sorted_small_and_numpys_own(tmp_path: Path) -> None:
    write_digests(tmp_path, KnownImages(digests_of([*PIXELS, "", PIXELS[0]])))
    stored = np.load(tmp_path / DIGESTS_FILE, allow_pickle=False)
    assert stored.shape == (50, 16)
    assert [bytes(row).hex() for row in stored] == sorted(digest[:32] for digest in PIXELS)
    assert (tmp_path / DIGESTS_FILE).stat().st_size <= 16 * len(PIXELS) + 128
    with pytest.raises(ValueError, match="non-hexadecimal"):
        digests_of(["x" * 64])


def test_digests_are_found_in_the_run_folder_and_in_the_adapters_own(tmp_path: Path) -> None:
    known = KnownImages(digests_of(PIXELS))
    saved = adapter_of(tmp_path / "run", known)
    assert b"digests" not in (saved / "medrm.json").read_bytes()
    assert images_of(saved).gap is None
    assert np.array_equal(images_of(saved).digests, known.digests)
    copy = tmp_path / "copied" / "adapter"
    shutil.copytree(saved, copy)
    assert images_of(copy).digests is None
    assert images_of(copy).gap == f"it came without the {DIGESTS_FILE} of its run folder"
    other = adapter_of(tmp_path / "other", KnownImages(digests_of(PIXELS[:9])))
    shutil.copy(other.parent / DIGESTS_FILE, copy.parent)
    assert images_of(copy).digests is None
    assert "belongs to another model" in str(images_of(copy).gap)
    shutil.copy(saved.parent / DIGESTS_FILE, copy)  # as it is published
    assert np.array_equal(images_of(copy).digests, known.digests)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x80\x04}.",
        file_of(KnownImages(digests_of(PIXELS)))[:-1],
        file_of(KnownImages(digests_of(PIXELS))).replace(b"(50, 16)", b"(5000000000000, 16)"),
        file_of(KnownImages(digests_of(PIXELS))).replace(b"|u1", b"|O "),
    ],
)
def test_a_file_that_is_none_of_ours_gives_no_digests(tmp_path: Path, content: bytes) -> None:
    saved = adapter_of(tmp_path / "run", KnownImages(digests_of(PIXELS)))
    (saved.parent / DIGESTS_FILE).write_bytes(content)
    contract = read_adapter_config(saved)
    assert contract.training_images is not None
    record = replace(contract.training_images, sha256=hashlib.sha256(content).hexdigest())
    write_adapter_config(saved, replace(contract, training_images=record))
    assert images_of(saved).digests is None
    assert images_of(saved).gap


def test_an_adapter_of_unknown_images_leaves_a_gap(tmp_path: Path) -> None:
    known = images_of(adapter_of(tmp_path / "run", KnownImages(digests_of(PIXELS), "a gap")))
    assert known.digests is not None
    assert "unknown training images" in str(known.gap)
    nothing = images_of(adapter_of(tmp_path / "text", KnownImages(digests_of(()))))
    assert (len(nothing.digests), nothing.gap) == (0, None)  # trained on text alone


@pytest.mark.parametrize("version", ["", "0.3/"])
@pytest.mark.parametrize("name", ["reward_adapter", "judge_adapter"])
def test_adapters_of_earlier_versions_are_known_and_published_without(
    tmp_path: Path, version: str, name: str
) -> None:
    saved = tmp_path / "run" / "adapter"
    shutil.copytree(GOLDEN / f"{version}{name}", saved)
    in_contract = json.loads((saved / "medrm.json").read_text())["training_pixel_digests"]
    assert images_of(saved).gap is None
    assert np.array_equal(images_of(saved).digests, digests_of(in_contract))
    (saved / "manifest.json").unlink(missing_ok=True)
    for is_sealed in (False, True):
        if is_sealed:
            seal(saved, is_needed)
        files = published_files(saved, lambda *_: True)
        assert set(files) == {"medrm.json", *(["manifest.json"] if is_sealed else [])}
        assert not any(digest[:32].encode() in files["medrm.json"] for digest in in_contract)
    asked = published_files(saved, lambda *_: False, asked=True)
    assert set(asked) == {"medrm.json", "manifest.json", DIGESTS_FILE}
    assert images_of(saved).digests is not None  # here nothing has changed
    for file_name, content in asked.items():
        (saved / file_name).write_bytes(content)
    assert damage(saved) == []
    assert np.array_equal(images_of(saved).digests, digests_of(in_contract))
    assert (saved / "medrm.json").read_bytes() == config_bytes(read_adapter_config(saved))


COMMIT = "c" * 40
PUBLIC = {"name": "set", "hub_id": "org/set", "revision": COMMIT}


@pytest.mark.parametrize(
    ("data", "start", "asked", "leaves"),
    [
        (PUBLIC, None, False, True),
        ({**PUBLIC, "hub_id": "org/private"}, None, False, False),
        ({**PUBLIC, "revision": "d" * 40}, None, False, False),
        ({"name": "org/set", "revision": COMMIT}, None, False, False),  # a folder of that name
        (PUBLIC, "other/adapter", False, False),  # whose images may be private
        ({"name": "votes", "revision": "local"}, None, True, True),
    ],
)
def test_digests_leave_where_the_data_are_public_or_when_asked(
    tmp_path: Path, data: dict[str, str], start: str | None, asked: bool, leaves: bool
) -> None:
    saved = adapter_of(tmp_path / "run", KnownImages(digests_of(PIXELS)), data)
    path = saved.parent / "run.json"
    path.write_text(json.dumps({"config": {"init_adapter": start}, "data": {"train": data}}))

    def is_public(hub_id: str, revision: str) -> bool:
        return (hub_id, revision) == ("org/set", COMMIT)

    files = published_files(saved, is_public, asked=asked)
    assert files == ({DIGESTS_FILE: (path.parent / DIGESTS_FILE).read_bytes()} if leaves else {})
    path.unlink()
    assert bool(published_files(saved, is_public, asked=asked)) == asked
