"""`--output` of a command: through pipes, devices and links; what is no plain file is refused."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from medrm.cli import main
from medrm.data.phantom.phantom_set import write_phantom
from medrm.files import is_stream, output_problem, write_output


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("votes")
    write_phantom(folder, cases=2, seed=1)
    return folder / "votes.jsonl"


def audit(votes: Path, output: object) -> int:
    return main(["data", "audit", str(votes), "--output", str(output)])


def read_pipe(path: Path) -> tuple[threading.Thread, list[bytes]]:
    """Reads a named pipe to its end, beside the test."""
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread, received


def test_a_named_pipe_takes_the_whole_and_stays(votes: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread, received = read_pipe(pipe)
    assert audit(votes, pipe) == 0
    thread.join(30)
    assert json.loads(received[0])["name"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("there", ["a file", "nothing", "no folder"])
def test_a_link_stays_and_its_target_is_written(votes: Path, tmp_path: Path, there: str) -> None:
    target = tmp_path / ("new/deeper" if there == "no folder" else "elsewhere") / "audit.json"
    if there != "no folder":
        target.parent.mkdir()
    if there == "a file":
        target.write_text("old")
    (tmp_path / "link").symlink_to(os.path.relpath(target, tmp_path))
    (tmp_path / "second").symlink_to(tmp_path / "link")
    assert audit(votes, tmp_path / "second") == 0
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "link").is_symlink()
    assert not target.is_symlink()
    assert json.loads(target.read_text(encoding="utf-8"))["name"]


def test_a_link_to_a_pipe_is_a_pipe(votes: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    thread, received = read_pipe(tmp_path / "pipe")
    assert audit(votes, tmp_path / "link") == 0
    thread.join(30)
    assert json.loads(received[0])["name"]
    assert (tmp_path / "link").is_symlink()


def test_a_folder_a_socket_and_a_loop_are_refused(
    votes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        before = sorted(os.listdir(tmp_path))
        for name, words in {
            "folder": "it is a folder",
            "loop": "leads back to itself",
            "socket": "it is no plain file",
            "link": "it is no plain file",
        }.items():
            assert audit(votes, name) == 2
            assert words in capsys.readouterr().err
            assert main(["throughput", "--output", name]) == 2
            assert words in capsys.readouterr().err
        assert sorted(os.listdir(tmp_path)) == before


def test_a_device_is_written_and_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands for the device, which only the superuser may make: its status says so."""
    device = tmp_path / "device"
    device.write_text("")
    number, status_of_path = device.stat().st_ino, Path.stat

    def as_device(path: Path, **options: Any) -> os.stat_result:
        status = status_of_path(path, **options)
        if path != device:
            return status
        return os.stat_result((stat.S_IFCHR | 0o666, *status[1:]))

    monkeypatch.setattr(Path, "stat", as_device)
    monkeypatch.setattr(os, "replace", None)  # nothing may take the device's place
    assert is_stream(device)
    assert output_problem(device, folder=False) is None
    write_output(device, [b"one", b"two"])
    assert device.read_bytes() == b"onetwo"
    assert os.stat(device).st_ino == number


def test_the_null_device_stays(votes: Path) -> None:
    before = os.stat(os.devnull)
    assert output_problem(os.devnull, folder=False) is None
    write_output(Path(os.devnull), [b"bytes"])
    assert os.path.samestat(before, os.stat(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("redirected", [True, False])
def test_standard_output_takes_it_between_what_is_printed(redirected: bool, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from medrm.files import write_output; print('before');"
        "write_output(Path('/dev/stdout'), [b'written\\n']); print('after')"
    )
    command, path = [sys.executable, "-c", code], tmp_path / "out.txt"
    if redirected:
        with path.open("wb") as file:
            subprocess.run(command, stdout=file, check=True)
        text = path.read_text(encoding="utf-8")
    else:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text == "before\nwritten\nafter\n"


@pytest.mark.parametrize("place", ["/proc", "file"])
def test_where_no_file_can_be_is_refused_by_every_command(
    place: str, votes: Path, root: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    if place == "/proc" and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    rows = '{"question": "?", "answers": ["yes"]}\n'
    Path("rows.jsonl").write_text(rows)
    model, evaluation = (str(root / f"tests/golden/{name}") for name in ("reward_adapter", "0.3"))
    evaluations = sorted(map(str, Path(evaluation, "evaluations").iterdir()))[:2]
    measured = ["--model", "mock:longer", "--benchmark", str(votes)]
    out = f"{place}/nope"
    for command in (
        ["score", "--model", model, "--input", "rows.jsonl", "--output", f"{out}.jsonl"],
        ["score", "--model", model, "--input", "rows.jsonl", "--output", out],
        ["merge", model, "--output", out],
        ["export", model, "--to", "peft", "--output", out],
        ["evaluate", *measured, "--output_dir", out],
        ["leaderboard", "phantom", "--output_dir", out],
        ["compare", *evaluations, "--output_dir", out],
        ["data", "phantom", "--cases", "2", "--output", out],
        ["data", "audit", str(votes), "--output", f"{out}.json"],
        ["data", "import", str(votes), "--output", out],
        ["throughput", "--output", f"{out}.json"],
    ):
        assert main(command) == 2, command
        told = capsys.readouterr().err
        assert "nope" in told, command
        assert ("takes no file" in told) is (place == "/proc"), (command, told)
        assert ("is no folder" in told) is (place == "file"), (command, told)


def test_a_plain_file_appears_whole(votes: Path, tmp_path: Path) -> None:
    assert audit(votes, tmp_path / "new" / "audit.json") == 0
    assert os.listdir(tmp_path / "new") == ["audit.json"]
