"""Two launchers, as on two machines, by the shipped file and by the script for SLURM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_launch import free_port

STANDINS = {
    # Both nodes are this machine; a step of SLURM gets the signals that `scancel` sends.
    "srun": """
        pids=
        for node in 0 1; do SLURM_NODEID=$node "$@" & pids="$pids $!"; done
        echo "$pids" > "$STEP"; status=0
        for pid in $pids; do wait "$pid" || status=$?; done
        exit $status""",
    "scontrol": """
        if [ "$1" = show ]; then echo 127.0.0.1; echo 127.0.0.1; else echo "$@" >> "$CALLS"; fi""",
    "scancel": """
        echo "$@" >> "$CALLS"; touch "$STEP.signalled\"""",
    "accelerate": """
        exec "$PYTHON" -m accelerate.commands.launch "$@\"""",
}


def script(root: Path, folder: Path, config: Path, **changes: str) -> subprocess.Popen[str]:
    """Starts the script with stand-ins for the commands of SLURM."""
    for name, body in STANDINS.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
    return subprocess.Popen(
        ["bash", "accelerate_configs/two_nodes.sbatch"],
        cwd=root,
        env={
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(root),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_ID": "7",
            "STEP": str(folder / "step"),
            "CALLS": str(folder / "calls"),
            "MEDRM_LAUNCH": str(config),
            **changes,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
