"""What is said of full disks, paths that may not be used, dead workers and too little memory."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader

from medrm.cli import main
from medrm.errors import DataError
from medrm.failures import failure_of, naming
from medrm.files import cache_dir, filled_or_emptied, output_problem, write_atomically
from medrm.guard import guarded

NOISE = torch.arange(20_000, dtype=torch.float32)


def fails(action: Callable[[], object]) -> tuple[int, str]:
    """The exit status of an action and what is said of it."""
    try:
        action()
    except Exception as error:
        failure = failure_of(error)
        return (-1, repr(error)) if failure is None else (failure.status, failure.message)
    return 0, "it did not fail"


def write_rows(path: Path) -> None:
    with pa.ipc.new_file(str(path), pa.schema([("x", pa.float32())])) as file:
        file.write_batch(pa.RecordBatch.from_arrays([pa.array(NOISE.numpy())], names=["x"]))


WORDS = {str(number): number for number in range(5_000)}

WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda path: save_file({"x": NOISE}, path),
    "torch": lambda path: torch.save({"x": NOISE}, path),
    "numpy": lambda path: np.save(path.with_suffix(".npy"), NOISE.numpy()),
    "text": lambda path: path.write_text("x" * 80_000),
    "arrow": write_rows,
    "tokenizers": lambda path: Tokenizer(WordLevel(WORDS, "0")).save(str(path)),
    "parquet": lambda path: parquet.write_table(pa.table({"x": NOISE.numpy()}), path),
    "datasets": lambda path: Dataset.from_dict({"x": NOISE.numpy()}).save_to_disk(str(path)),
    "picture": lambda path: Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    ).save(path, format="png"),
    "ours": lambda path: write_atomically(path, [b"x" * 80_000]),
}


@pytest.mark.parametrize("size", [0, 1_000, 30_000])
@pytest.mark.parametrize("writer", list(WRITERS))
def test_a_full_disk_is_told_whichever_library_writes(
    tmp_path: Path, limited: Callable[[int], None], writer: str, size: int
) -> None:
    path = tmp_path / "file"

    def named() -> None:
        with naming(path):
            WRITERS[writer](path)

    limited(size)
    unnamed, named_failure = fails(lambda: WRITERS[writer](path)), fails(named)
    limited(2**30)
    for status, message in (unnamed, named_failure):
        assert status == 1
        assert " could not be written: " in message
        assert "Make room there and start the same command again" in message
    assert str(path) in named_failure[1]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=["disk", "quota", "limit"]
)
def test_disk_quota_and_limit_have_their_own_words(number: int) -> None:
    def write() -> None:
        raise OSError(number, os.strerror(number), "runs/mine/metrics.jsonl")

    status, message = fails(write)
    assert status == 1
    assert message.startswith(
        f"runs/mine/metrics.jsonl could not be written: {os.strerror(number)}"
    )


def test_a_stream_of_torch_that_only_failed_is_told() -> None:
    failure = failure_of(RuntimeError("basic_ios::clear: iostream error"))
    assert "could not be written: less was written than was to be" in str(failure)


def test_a_failure_behind_another_error_is_found() -> None:
    def wrapped() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "rows.arrow")
        except OSError as error:
            raise ValueError("the table could not be generated") from error

    assert fails(wrapped)[1].startswith("rows.arrow could not be written")


def test_no_place_for_temporary_files_is_told() -> None:
    def look() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    status, message = fails(look)
    assert status == 1
    assert "set TMPDIR to a folder with room" in message


def test_a_bug_keeps_its_traceback() -> None:
    assert failure_of(KeyError("x")) is None
    assert failure_of(RuntimeError("shapes do not match")) is None
    assert failure_of(RuntimeError("8 processes requested and only 4 GPUs are there")) is None

    def cope_badly() -> None:
        try:
            fill_disk()
        except OSError:
            dict[str, int]()["x"]

    assert fails(cope_badly) == (-1, "KeyError('x')")
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


class Failing(torch.utils.data.Dataset[Any]):
    """One item, which a worker process cannot give."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        self.fail()


def kill_itself() -> None:
    os.kill(os.getpid(), 9)


def refuse_case() -> None:
    raise DataError("case 'x-1': image a.png cannot be decoded: it is cut off.\nReplace it.")


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/dev/shm/torch_1")


@pytest.mark.parametrize(
    ("fail", "status", "told"),
    [
        (kill_itself, 1, "A process that loads images died: DataLoader worker"),
        (refuse_case, 2, "case 'x-1': image a.png cannot be decoded: it is cut off.\nReplace it."),
        (fill_disk, 1, "/dev/shm/torch_1 could not be written: No space left on device"),
    ],
    ids=["killed", "case", "disk"],
)
def test_data_workers_that_fail(fail: Callable[[], None], status: int, told: str) -> None:
    loader = DataLoader(Failing(fail), num_workers=1, batch_size=None)
    failed = fails(lambda: next(iter(loader)))
    assert failed[0] == status
    assert told in failed[1]
    assert "Traceback" not in failed[1]
    if fail is kill_itself:
        assert "Lower --dataloader_num_workers" in failed[1]


def allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def allocate_on_gpu() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB "
        "of which 1.00 GiB is free. If reserved but unallocated memory is large try setting "
        "PYTORCH_ALLOC_CONF=expandable_segments:True."
    )


@pytest.mark.parametrize("allocate", [allocate_too_much, allocate_on_gpu])
def test_too_little_memory_names_what_to_lower(allocate: Callable[[], None]) -> None:
    status, message = fails(allocate)
    assert status == 1
    assert message.startswith("Out of memory: ")
    assert "--per_device_train_batch_size" in message
    assert "PYTORCH_ALLOC_CONF" not in message


def test_a_thread_leaves_a_full_disk_to_the_main_thread(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def in_thread(fail: Callable[[], object]) -> None:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    hook = threading.excepthook
    try:
        assert guarded(lambda: in_thread(fill_disk)) == 0
        assert "Traceback" not in capsys.readouterr().err
        assert guarded(lambda: in_thread(lambda: 1 // 0)) == 0
        assert "ZeroDivisionError" in capsys.readouterr().err
    finally:
        threading.excepthook = hook


@pytest.mark.slow
def test_a_set_that_does_not_fit_leaves_nothing(
    tmp_path: Path, limited: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "phantom", "--cases", "6", "--output"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*.parquet"))
    limited(largest - 1)
    assert main([*words, str(tmp_path / "set")]) == 1
    limited(2**30)
    message = capsys.readouterr().err
    assert "could not be written: File too large" in message
    assert "Traceback" not in message
    assert not (tmp_path / "set").exists()
    assert main([*words, str(tmp_path / "set")]) == 0
    files = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "whole", tmp_path / "set")
    ]
    assert files[0] == files[1]


def test_only_what_was_added_to_a_folder_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "set"
    for name in ("elsewhere/file", "set/theirs/file"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()

    def fill() -> None:
        with filled_or_emptied(folder):
            (folder / "images").mkdir()
            (folder / "images" / "0.png").touch()
            (folder / "votes.jsonl").touch()
            (folder / "link").symlink_to(elsewhere)
            raise KeyError("the first")

    with pytest.raises(KeyError, match="the first"):
        fill()
    assert [path.name for path in folder.rglob("*")] == ["theirs", "file"]
    assert (elsewhere / "file").is_file()

    def refuse(*given: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(KeyError, match="the first"):
        fill()


def test_what_goes_on_is_named() -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "table.json")

    assert fails(write)[1].endswith(
        "start the same command again: a run, an evaluation or a score goes on where it was "
        "stopped."
    )


def bad_paths(folder: Path) -> dict[str, str]:
    """Paths below a folder at which no folder can be made."""
    (folder / "file").write_text("x")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    return {
        "is no folder": f"{folder}/file",
        "file is no folder": f"{folder}/file/below/it",
        "dangling leads nowhere": f"{folder}/dangling",
        "dangling leads": f"{folder}/dangling/below",
        "loop leads nowhere": f"{folder}/loop",
        "more than 255 bytes": f"{folder}/new/{'n' * 256}",
        "of more than 255 bytes": f"{folder}/{'ö' * 128}/below",
        "no file system has such a name": f"{folder}/a\0b",
        "printable characters": f"{folder}/\ud800",
    }


COMMANDS = {
    "phantom": ("data", "phantom", "--cases", "4", "--output"),
    "evaluate": ("evaluate", "--model", "mock:oracle", "--benchmark", "phantom", "--output_dir"),
    "leaderboard": ("leaderboard", "med_rewardbench", "--output_dir"),
    "compare": ("compare", "before", "after", "--output_dir"),
}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_folder_that_cannot_be_made_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for told, path in bad_paths(tmp_path).items():
        assert main([*COMMANDS[command], path]) == 2, told
        message = capsys.readouterr().err
        assert message.startswith(f"Error: {COMMANDS[command][-1]} "), told
        assert told in message
        assert "Traceback" not in message


@pytest.mark.parametrize("path", ["file/below", "n" * 256, "folder"])
def test_a_file_that_cannot_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    bad_paths(tmp_path)
    (tmp_path / "folder").mkdir()
    for words in (("data", "audit", "nowhere"), ("throughput",)):
        assert main([*words, "--output", str(tmp_path / path)]) == 2
        assert capsys.readouterr().err.startswith("Error: --output ")


def test_an_empty_path_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*COMMANDS["evaluate"], ""])
    assert "argument --output_dir: it is empty; give a path" in capsys.readouterr().err


def test_paths_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("", "new", "new/deeper", "link", "link/new", "Ärzte, \n2 %", "n" * 255):
        assert output_problem(tmp_path / name, folder=True) is None, name
    assert output_problem(tmp_path / "new" / "table.json", folder=False) is None


def test_a_folder_that_is_only_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    output = tmp_path / "new" / "set"
    assert main([*COMMANDS["phantom"], str(output)]) == 2
    message = capsys.readouterr().err
    assert f"this user cannot write in {tmp_path}; give another path" in message


@pytest.mark.parametrize("home", [None, "/proc/nowhere", "/dev/null"])
def test_the_cache_of_a_user_without_a_home(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    home: str | None,
) -> None:
    pwd = pytest.importorskip("pwd")

    def unknown(user: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("MEDRM_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
        access = os.access
        monkeypatch.setattr(os, "access", lambda p, m: str(p) != "/proc" and access(p, m))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    from medrm import files

    files._temporary_cache.cache_clear()
    folder = cache_dir()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "Set MEDRM_CACHE to a folder" in caplog.text
    assert cache_dir() == folder
    assert len(caplog.records) == 1
    files._temporary_cache.cache_clear()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    status, message = fails(cache_dir)
    assert status == 2
    assert "set MEDRM_CACHE to a folder" in message
    files._temporary_cache.cache_clear()


def test_a_home_that_can_be_written_holds_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDRM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "medrm"
