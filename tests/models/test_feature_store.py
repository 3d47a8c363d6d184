"""Features in files: bounded, shared by processes, and never a wrong number from a damaged one."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from medrm.models import feature_store
from medrm.models.feature_store import FeatureFolder, FeatureMemory, digest_of
from medrm.models.image_features import Call

TOWER = "0123456789abcdef" * 4


def features(number: float, size: int = 100) -> dict[str, torch.Tensor]:
    return {"pooler_output": torch.full((size,), number), "deepstack_features.0/1": torch.ones(2)}


def key(number: int) -> str:
    return digest_of(str(number), {}).hex()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = FeatureFolder(tmp_path, 2**20)
    own = {name: tensor.to(dtype) for name, tensor in features(0.1).items()}
    assert folder.read(TOWER, key(0)) is None
    folder.write(TOWER, key(0), own)
    found = FeatureFolder(tmp_path, 2**20).read(TOWER, key(0))
    assert found is not None
    assert {n: (t.dtype, t.tolist()) for n, t in found.items()} == {
        n: (t.dtype, t.tolist()) for n, t in own.items()
    }
    assert FeatureFolder(tmp_path, 2**20).read("f" * 64, key(0)) is None  # another tower
    assert folder.damaged == 0


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "text", "other", "foreign", "huge"])
def test_a_damaged_file_is_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FeatureFolder(tmp_path, 2**20)
    folder.write(TOWER, key(0), features(0.1))
    (path,) = files(tmp_path)
    data = path.read_bytes()
    if damage == "other":  # whole, but of another image
        folder.write(TOWER, key(1), features(0.2))
        (other,) = set(files(tmp_path)) - {path}
        path.write_bytes(other.read_bytes())
    elif damage == "foreign":
        save_file(features(0.3), path)
    elif damage == "huge":
        monkeypatch.setattr(feature_store, "MOST_FILE_BYTES", len(data) - 1)
    else:
        changed = {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-5], "empty": b""}
        path.write_bytes(changed.get(damage, b"not a tensor, but a line of text"))
    memory = FeatureMemory(0, folder)
    with caplog.at_level(logging.WARNING):
        found = memory.get("a", lambda: (TOWER, key(0)), lambda: features(0.1))
    assert torch.equal(found["pooler_output"], features(0.1)["pooler_output"])
    assert (memory.computed, folder.damaged) == (1, 1)
    assert path.name in caplog.text
    monkeypatch.undo()
    memory.get("a", lambda: (TOWER, key(0)), lambda: features(0.1))  # from the file, whole again
    assert (memory.computed, folder.damaged) == (1, 1) if damage != "huge" else (2, 1)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
@pytest.mark.timeout(20)  # opening a pipe would wait for ever
def test_what_is_no_file_is_neither_read_nor_replaced(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FeatureFolder(tmp_path, 2_000)
    folder.write(TOWER, key(0), features(0.1))
    (path,) = files(tmp_path)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.chdir(path.parent)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(path.name)
    os.utime(path, (0, 0))
    about = path.stat()
    memory = FeatureMemory(0, folder)
    for _ in range(2):
        memory.get("a", lambda: (TOWER, key(0)), lambda: features(0.1))
    assert memory.computed == folder.damaged == 2
    for number in range(1, 9):  # the others are kept and make room for each other
        folder.write(TOWER, key(number), features(number))
        assert folder.read(TOWER, key(number)) is not None
    assert (path.stat().st_mode, path.stat().st_ino) == (about.st_mode, about.st_ino)


@pytest.mark.parametrize("written", [2**62, -1, 0.5])
def test_a_digest_that_is_none_costs_no_memory(tmp_path: Path, written: float) -> None:
    folder = FeatureFolder(tmp_path, 2**20)
    folder.write(TOWER, key(0), features(0.1))
    (path,) = files(tmp_path)
    save_file(features(0.1) | {"sha256": torch.tensor(written)}, path)
    assert folder.read(TOWER, key(0)) is None
    assert folder.damaged == 1


def test_the_least_recently_used_go_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "features-notes.safetensors"
    mine.write_bytes(bytes(20_000))
    os.utime(mine, (0, 0))
    folder = FeatureFolder(tmp_path, 10_000)
    for number in range(40):
        folder.write(TOWER, key(number), features(number))
        for path in files(tmp_path):
            if path.stem == key(number):
                os.utime(path, (number + 1, number + 1))
        folder.read(TOWER, key(0))
        kept = sum(path.stat().st_size for path in files(tmp_path) if path != mine)
        assert kept <= 10_000
    assert mine.is_file()
    assert folder.read(TOWER, key(0)) is not None  # used all the time
    assert folder.read(TOWER, key(39)) is not None
    assert folder.read(TOWER, key(1)) is None
    folder.write(TOWER, key(99), features(1, 10_000))  # more than all that may be kept
    assert folder.read(TOWER, key(99)) is None


def test_a_memory_says_what_it_gave(tmp_path: Path) -> None:
    size = len(save(features(0.5) | {"sha256": torch.zeros(32, dtype=torch.uint8)}))
    for again, expected in enumerate(("2 computed, 1 found in memory, 0", "0 computed, 1 found")):
        memory = FeatureMemory(2**20, FeatureFolder(tmp_path, 2**20))
        for number in (0, 1, 0):
            memory.get(str(number), lambda n=number: (TOWER, key(n)), lambda: features(0.5))
        assert memory.summary.startswith(expected)
        assert memory.folder is not None
        moved = (memory.folder.bytes_read, memory.folder.bytes_written)
        assert moved == ((2 * size, 0) if again else (0, 2 * size))
        assert memory.read == 2 * again
    assert FeatureMemory(1).summary == "0 computed, 0 found in memory"


def share(folder: Path, seed: int, most_bytes: int) -> tuple[int, int]:
    """Reads and writes as one of several; returns what was found, and what went wrong."""
    shared, found, wrong = FeatureFolder(folder, most_bytes), 0, 0
    generator = torch.Generator().manual_seed(seed)
    for number in torch.randint(12, (150,), generator=generator).tolist():
        kept = shared.read(TOWER, key(number))
        if kept is None:
            shared.write(TOWER, key(number), features(number))
        else:
            found += 1
            wrong += not torch.equal(kept["pooler_output"], features(number)["pooler_output"])
    return found, wrong + shared.damaged


def test_several_may_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(4) as pool, caplog.at_level(logging.WARNING):
        counts = list(pool.map(lambda seed: share(tmp_path, seed, 6_000), range(4)))
    assert [wrong for _, wrong in counts] == [0] * 4
    assert min(found for found, _ in counts) > 0
    assert not [path for path in files(tmp_path) if path.suffix == ".tmp"]
    assert "no longer written" not in caplog.text


def test_an_unfinished_file_that_makes_room_for_another_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = FeatureFolder(tmp_path, 10_000)
    folder.write(TOWER, key(0), features(0))
    replace = Path.replace

    def emptied(path: Path, target: Path) -> None:
        path.unlink()  # as another process does just then
        replace(path, target)

    monkeypatch.setattr(Path, "replace", emptied)
    with caplog.at_level(logging.WARNING):
        folder.write(TOWER, key(1), features(1))
    monkeypatch.undo()
    folder.write(TOWER, key(2), features(2))
    assert folder.read(TOWER, key(1)) is None
    assert folder.read(TOWER, key(2)) is not None
    assert not caplog.text


@pytest.mark.slow
def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """They delete each other's least recently used files while the other reads and writes."""
    work = (
        "import sys, pathlib, logging, test_feature_store as own;"
        "logging.basicConfig(level=logging.WARNING);"
        "print(*own.share(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))"
    )
    command = [sys.executable, "-c", work, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([*command, seed, "4000"], cwd=Path(__file__).parent, **pipes)
        for seed in "01"
    ]
    for process in started:
        said, problems = process.communicate(timeout=120)
        found, wrong = map(int, said.split())
        assert (process.returncode, wrong) == (0, 0), problems
        assert found > 0
        assert "Image features" not in problems
    assert not [path for path in files(tmp_path) if path.suffix == ".tmp"]


def test_a_disk_that_takes_no_more_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    memory = FeatureMemory(0, FeatureFolder(blocked, 2**20))
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            memory.get(str(number), lambda: (TOWER, key(0)), lambda: features(1))
    assert memory.computed == 3
    assert caplog.text.count("no longer written") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_keys_tell_contents_apart(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(0, 2, (1500, 1000), generator=generator).to(dtype)
    last, swapped, flat = one.clone(), one.clone(), one.clone().reshape(1000, 1500)
    last[-1, -1] = 1 - last[-1, -1].long()
    swapped[[0, 1]] = one[[1, 0]]

    def own(tensor: torch.Tensor) -> str:
        return Call({0: tensor}, [1], {0: (tensor,)}).keys()[0]

    keys = [own(tensor) for tensor in (one, last, swapped, flat)]
    assert len(set(keys)) == 4
    assert own(one.t().contiguous().t()) == keys[0]
