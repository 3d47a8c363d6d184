"""A run on a full disk says so in any write, leaves nothing half written, and goes on to the same.

Where the test may mount a file system it fills a small one; everywhere it limits the size of files,
which fails the writes of all that are larger.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pipeline.entry import Recipe

from medrm.files import DRAFT

COMPARED = (
    "adapter/adapter_model.safetensors",
    "metrics.jsonl",
    "evaluation/after/responses.jsonl",
    "evaluation/after/verdicts.jsonl",
    "evaluation/before/verdicts.jsonl",
)

OPTIONS = {"controls": "none", "report_to": "tensorboard", "dataloader_num_workers": 0}
JUDGE = {**OPTIONS, "objective": "judge_sft", "per_device_train_batch_size": 4}


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in COMPARED}


def half_written(folder: Path) -> list[str]:
    names = (path.name for path in folder.rglob("*"))
    return [name for name in names if name.endswith(".partial") or name.startswith(DRAFT)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Returns a function that gives a disk of so many KiB its size, and where it is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")

    def resized(size: int) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True)
        return folder

    yield resized
    subprocess.run(["umount", str(folder)], check=True)


def stops_and_goes_on(
    run: Callable[[], int],
    limit: Callable[[bool], None],
    folder: Path,
    straight: Path,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """A run under a limit fails in words; without it the same command ends as the straight one.

    Returns:
        what could not be written, below the run's folder.
    """
    limit(True)
    status = run()
    limit(False)
    message = capsys.readouterr().err
    assert status == 1, message[-2000:]
    assert "Traceback" not in message
    (said,) = [line for line in message.splitlines() if line.startswith("Error: ")]
    assert " could not be written: " in said
    assert "Make room there and start the same command again" in said
    assert said.startswith(("Error: /", f"Error: {folder}"))
    assert not half_written(folder)
    assert run() == 0
    assert contents(folder) == contents(straight)
    path = said.removeprefix("Error: ").split(" could not be written: ")[0]
    return path.removeprefix(f"{folder}/")


def print_table(stopped: list[tuple[float, str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Prints at what size of a file or a disk which file could not be written."""
    with capsys.disabled():
        for share, path in stopped:
            sys.stdout.write(f"\n{share:7.4f}  {path}")


@pytest.fixture
def straight(recipe: Recipe, phantom: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns a function from options to the folder of a run that nothing stops."""

    def done(**options: object) -> Path:
        folder = tmp_path / "straight"
        assert recipe(train_data=phantom, output_dir=folder, **options) == 0
        return folder

    return done


def sweep_limits(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    straight: Path,
    capsys: pytest.CaptureFixture[str],
    limited: Callable[[int], None],
    shares: list[float],
    options: dict[str, object],
) -> None:
    stopped: list[tuple[float, str]] = []
    largest = max(path.stat().st_size for path in straight.rglob("*") if path.is_file())
    for number, share in enumerate(shares):
        folder = tmp_path / f"run-{number}"
        what = stops_and_goes_on(
            lambda folder=folder: recipe(train_data=phantom, output_dir=folder, **options),
            lambda is_on, share=share: limited(int(largest * share) if is_on else 2**40),
            folder,
            straight,
            capsys,
        )
        stopped.append((share, what))
    print_table(stopped, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("options", [OPTIONS, JUDGE], ids=["scores", "judge"])
def test_files_that_may_not_be_so_large(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    straight: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    limited: Callable[[int], None],
    options: dict[str, object],
) -> None:
    """No file at all, not a checkpoint's weights, not its optimiser."""
    done = straight(**options)
    capsys.readouterr()
    shares = [0.0, 0.3, 0.9]
    sweep_limits(recipe, phantom, tmp_path, done, capsys, limited, shares, options)


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [OPTIONS, JUDGE], ids=["scores", "judge"])
def test_files_of_all_sizes(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    straight: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    limited: Callable[[int], None],
    options: dict[str, object],
) -> None:
    done = straight(**options)
    capsys.readouterr()
    shares = [(number / 30) ** 3 for number in range(30)]
    sweep_limits(recipe, phantom, tmp_path, done, capsys, limited, shares, options)


def sweep_disks(
    recipe: Recipe,
    phantom: Path,
    straight: Path,
    capsys: pytest.CaptureFixture[str],
    disk: Callable[[int], Path],
    shares: list[float],
    options: dict[str, object],
) -> None:
    stopped: list[tuple[float, str]] = []
    # Such a disk holds whole pages of 4 KiB.
    sizes = [path.stat().st_size for path in straight.rglob("*") if path.is_file()]
    used = sum(-(-size // 4096) * 4096 for size in sizes)
    for number, share in enumerate(shares):
        disk(2**20)
        folder = disk(2**20) / f"run-{number}"
        before = shutil.disk_usage(folder.parent).used

        def limit(is_on: bool, share: float = share, before: int = before) -> None:
            disk((before + int(used * share)) // 1024 + 8 if is_on else 2**20)

        what = stops_and_goes_on(
            lambda folder=folder: recipe(train_data=phantom, output_dir=folder, **options),
            limit,
            folder,
            straight,
            capsys,
        )
        stopped.append((share, what))
    print_table(stopped, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("options", [OPTIONS, JUDGE], ids=["scores", "judge"])
def test_a_full_disk(
    recipe: Recipe,
    phantom: Path,
    straight: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    disk: Callable[[int], Path],
    options: dict[str, object],
) -> None:
    """In the evaluation, in a checkpoint, in the adapter."""
    done = straight(**options)
    capsys.readouterr()
    sweep_disks(recipe, phantom, done, capsys, disk, [0.01, 0.4, 0.85], options)


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [OPTIONS, JUDGE], ids=["scores", "judge"])
def test_disks_of_all_sizes(
    recipe: Recipe,
    phantom: Path,
    straight: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    disk: Callable[[int], Path],
    options: dict[str, object],
) -> None:
    done = straight(**options)
    capsys.readouterr()
    shares = [number / 40 for number in range(38)]
    sweep_disks(recipe, phantom, done, capsys, disk, shares, options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("16k", "The processes that load images cannot be started"),
        ("100k", "cannot send its batch"),
    ],
)
def test_shared_memory_that_data_workers_need(
    base: Path, phantom: Path, tmp_path: Path, root: Path, size: str, said: str
) -> None:
    """Without room for their locks, or for a batch, a training ends in words, and soon."""
    private = ["unshare", "-m", "sh", "-c"]
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if sys.platform != "linux" or subprocess.run([*private, mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    options = {
        **{"model_name_or_path": base, "train_data": phantom, "output_dir": tmp_path / "run"},
        **{"stages": "train", "max_steps": 2, "dataloader_num_workers": 2, "report_to": "none"},
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = shlex.join([sys.executable, str(root / "recipes/train_rm.py"), *words])
    process = subprocess.run(
        [*private, f"{mount} && exec {command}"], capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 1, process.stderr[-2000:]
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert "No space left on device" in line
    assert "Lower --dataloader_num_workers (0: none), or give the job more memory (docker" in line
    assert "Traceback" not in process.stderr
