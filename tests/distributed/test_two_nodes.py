"""Two launchers, as on two machines, by the shipped file and by the script for SLURM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from test_launch import free_port

pytestmark = pytest.mark.distributed

STANDINS = {
    "srun": """# Both nodes are this machine.
        SLURM_NODEID=0 "$@" & SLURM_NODEID=1 "$@"; status=$?
        wait $! && exit $status""",
    "scontrol": """
        if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$CALLS"; fi""",
    "accelerate": """
        exec "$PYTHON" -m accelerate.commands.accelerate_cli "$@\"""",
}
"""What the script calls."""


ROWS_AT_ONCE = ("--evaluation_batch_rows", "1")
"""Windows of eight rows, so that each node has several."""

JOB = str(10**9 + os.getpid())
"""By its number the script finds the processes of the job."""


def start(root: Path, folder: Path, output: Path) -> subprocess.Popen[str]:
    """Starts the script with stand-ins for the commands of SLURM."""
    for name, body in STANDINS.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
    file = root / "accelerate_configs" / "multi_node_ddp.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config |= {"num_processes": 2, "main_process_port": free_port()}
    (folder / "launch.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    options = {
        "max_steps": 40, "save_steps": 1000, "eval_steps": 1000,
        "global_batch_cases": 4, "controls": "none", "output_dir": output,
        "dimension_weights": '{"accuracy": 2}',  # no pattern that pgrep would take
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", "accelerate_configs/two_nodes.sbatch"]
        + [word for key, value in options.items() for word in (f"--{key}", str(value))],
        cwd=root,
        env={
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(root),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_ID": JOB,
            "CALLS": str(folder / "calls"),
            "MEDRM_LAUNCH": str(folder / "launch.yaml"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its launchers end with it
    )


def end(job: subprocess.Popen[str]) -> None:
    """Ends the script and all that it has started, workers in their own sessions as well."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(job.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def test_a_job_on_two_nodes_is_stopped_and_goes_on(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    job = start(root, tmp_path, output)
    deadline = time.monotonic() + 200
    try:
        while not (output / "metrics.jsonl").is_file():  # it trains
            assert job.poll() is None, job.communicate()[0][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        said, _ = job.communicate(timeout=200)
    finally:
        end(job)
    assert (tmp_path / "calls").read_text(encoding="utf-8") == f"requeue {JOB}\n", said[-4000:]
    (checkpoint,) = output.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert step < 40
    lines = (output / "metrics.jsonl").read_bytes()

    job = start(root, tmp_path, output)
    try:
        said, _ = job.communicate(timeout=300)
    finally:
        end(job)
    assert job.returncode == 0, said[-4000:]
    assert (output / "metrics.jsonl").read_bytes().startswith(lines)
    assert json.loads((output / "run.json").read_text(encoding="utf-8"))["processes"] == 2
    assert (output / "report.html").is_file()


def test_two_nodes_score_the_lines_of_one_process(root: Path, tmp_path: Path) -> None:
    """Each node has a process of its own; the file is on a disk that both see."""
    model = root / "tests" / "golden" / "reward_adapter"
    rows = [{"question": f"Is it {n}?", "answers": ["yes", "no", "A" * n]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = root / "accelerate_configs" / "multi_node_ddp.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config |= {"num_processes": 2, "main_process_port": free_port(), "use_cpu": True}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    launcher = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(tmp_path / "launch.yaml"), "--main_process_ip", "127.0.0.1"),
    ]

    def words(output: str) -> list[str]:
        paths = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / output)]
        return ["-m", "medrm", "score", "--model", str(model), *paths, *ROWS_AT_ONCE]

    environment = {**os.environ, "PYTHONPATH": str(root)}
    nodes = [
        subprocess.Popen(
            [*launcher, "--machine_rank", str(rank), *words("two.jsonl")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (1, 0)
    ]  # fmt: skip
    try:
        said = [node.communicate(timeout=250)[0] for node in nodes]
    finally:
        for node in nodes:
            end(node)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-4000:]
    assert "".join(said).count("40 of 40 rows scored") == 1  # the first process alone says so
    subprocess.run([sys.executable, *words("one.jsonl")], env=environment, check=True)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.scores-part"))
