"""Manifests of folders: every damage to every file is found, and nothing else is taken for one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from damages import KINDS

from medrm.files import DRAFT, atomic_folder, discard, replace_folder, write_atomically
from medrm.integrity import MANIFEST, changing, damage, is_sealed, seal
from medrm.leftovers import remove_drafts

FILES = {
    "weights.safetensors": bytes(range(256)) * 20,
    "state.json": b'{"step": 4}',
    "shards/0.pt": b"0123456789" * 10,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    seal(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_damage_to_every_file_is_found_and_named(folder: Path, name: str, kind: str) -> None:
    assert damage(folder) == []
    KINDS[kind](folder / name)
    problems = damage(folder)
    if (name, kind) == (MANIFEST, "missing"):
        assert problems == ["it is unsealed"]
    elif name == MANIFEST:  # or what it says of a file is other than the file
        assert problems
    else:
        assert [problem.split()[0] for problem in problems] == [name]


def test_every_byte_of_the_manifest_counts(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    for index in range(len(text)):
        changed = bytearray(text)
        changed[index] ^= 1 << index % 8
        (folder / MANIFEST).write_bytes(changed)
        assert damage(folder), index


def test_what_is_added_is_no_damage(folder: Path) -> None:
    (folder / "README.md").write_text("A card.")
    assert damage(folder) == []
    assert damage(folder / "nowhere") == ["it is no folder"]


def test_a_file_may_be_left_out(folder: Path) -> None:
    (folder / "README.md").write_text("A card.")
    seal(folder, lambda name: name != "README.md")
    (folder / "README.md").write_text("Another card.")
    assert damage(folder) == []


def test_a_folder_fits_its_manifest_while_a_file_of_it_is_replaced(folder: Path) -> None:
    with changing(folder / "state.json"):
        assert damage(folder) == []
        write_atomically(folder / "state.json", [b"{}"])
        assert damage(folder) == []
    assert damage(folder) == []
    (folder / "state.json").write_bytes(b"{ }")
    assert damage(folder) == ["state.json has 3 bytes instead of 2"]


def test_a_change_that_fails_leaves_no_file_out_of_the_manifest(folder: Path) -> None:
    manifest = (folder / MANIFEST).read_bytes()
    with pytest.raises(KeyboardInterrupt), changing(folder / "state.json"):
        raise KeyboardInterrupt
    assert (folder / MANIFEST).read_bytes() == manifest


def test_a_file_that_a_killed_change_left_out_is_taken_in(folder: Path, tmp_path: Path) -> None:
    with changing(folder / "state.json"):
        killed = shutil.copytree(folder, tmp_path / "killed")
    assert (killed / MANIFEST).read_bytes() != (folder / MANIFEST).read_bytes()
    with changing(killed / "state.json"):
        write_atomically(killed / "state.json", [b"{}"])
    (killed / "state.json").write_bytes(b"{ }")
    assert damage(killed) == ["state.json has 3 bytes instead of 2"]


def test_a_folder_without_a_manifest_gets_none_by_a_change(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with changing(folder / "state.json"):
        write_atomically(folder / "state.json", [b"{}"])
    assert not is_sealed(folder)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "sealed") as draft:
            (draft / "closed").touch(mode=0o600)
            (draft / "below").mkdir()
            (draft / "below" / "open").touch(mode=0o666)
            seal(draft)
    finally:
        os.umask(before)
    entries = [tmp_path / "sealed", *(tmp_path / "sealed").rglob("*")]
    modes = {path.stat().st_mode & 0o777 for path in entries if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in entries if path.is_dir()}
    assert (modes, folders) == ({mode}, {0o777 & ~umask})
    assert len(entries) == 5


def test_a_folder_takes_the_place_of_another(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "draft-new")
    (folder / "old").touch()
    replace_folder(tmp_path / "draft-new", folder)
    assert damage(folder) == []
    assert not (folder / "old").exists()
    discard(folder)
    discard(folder)
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{DRAFT}1" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "checkpoint-1").mkdir()
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
