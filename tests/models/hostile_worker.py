"""Loads damaged models in processes of limited memory and time: `hostile_worker.py FOLDER`.

Prints one JSON object for each variant: how it ended, in how many seconds, and how far the memory
rose above that of the libraries. Each is loaded in a fork of its own, which has them already.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hostile_settings import (
    contract_variants,
    peft_variants,
    processor_variants,
    template_variants,
)
from hostile_weights import (
    Variant,
    copy_of,
    file_variants,
    folder_variants,
    tensor_variants,
)
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden" / "0.3"
SECONDS, WAITED, MEMORY = 20, 150, 2**30
"""What one load may take: of processor time, on the clock of a busy machine (a chat template alone
60 seconds), bytes of memory."""


def all_variants() -> dict[str, Variant]:
    """Every variant by its name."""
    contracts = [
        json.loads((GOLDEN / f"{name}_adapter" / "medrm.json").read_text())
        for name in ("reward", "judge")
    ]
    variants: dict[str, Variant] = {}
    for variant in (
        *tensor_variants(),
        *file_variants(),
        *folder_variants(),
        *peft_variants(),
        *contract_variants(contracts[0], contracts[1]),
        *template_variants(),
        *processor_variants(),
    ):
        assert variant.name not in variants, variant.name
        variants[variant.name] = variant
    return variants


def _bytes_of(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024
    )


def _ended(folder: Path, command: bool) -> dict[str, Any]:
    """Loads a model, or scores with it by the command; returns how that ended."""
    from medrm.errors import MedrmError

    if command:
        from medrm.cli import main

        rows = folder.parent / "rows.jsonl"
        rows.write_text(json.dumps({"question": "What?", "answers": ["Yes.", "No."]}))
        output = str(folder.parent / "scores.jsonl")
        words = ["score", "--model", str(folder), "--input", str(rows), "--output", output]
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            status = main(words)
        return {"end": f"status {status}", "message": said.getvalue()[-300:]}
    try:
        import medrm

        model = medrm.load(folder, device="cpu")
        row = {
            "images": [Image.new("RGB", (40, 60), (90, 0, 0))],
            "question": "What?",
            "answers": ["Yes.", "No."],
        }
        if hasattr(model, "score"):
            rewards = model.score(**row)
            return {"end": "loaded", "message": str(rewards.tolist())}
        return {"end": "loaded", "message": str(model.compare(**row))}
    except MedrmError as error:
        return {"end": type(error).__name__, "message": str(error)}


def _child(folder: Path, writer: int, command: bool) -> None:
    """Runs in the fork: never returns."""
    before, size = _bytes_of("VmRSS:"), _bytes_of("VmSize:")
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    os.environ["MARK"] = str(folder.parent / "mark")
    started = time.process_time()
    try:
        record = _ended(folder, command)
    except BaseException as error:
        record = {"end": "traceback", "message": f"{type(error).__name__}: {error}"[:500]}
        if "-v" in sys.argv:
            import traceback

            record["message"] = traceback.format_exc()[-1500:]
    record["seconds"] = round(time.process_time() - started, 3)
    record["bytes"] = max(0, _bytes_of("VmHWM:") - before)
    record |= {"length": len(record["message"]), "message": record["message"][:1500]}
    os.write(writer, json.dumps(record).encode())
    os._exit(0)


def attempt(
    variant: Variant, scratch: Path, models: dict[str, Path], command: bool
) -> dict[str, Any]:
    """Damages a model, loads it in a fork and returns how that ended."""
    folder = copy_of(models[variant.model], scratch / "here" / "adapter")
    variant.damage(folder)
    reader, writer = os.pipe()
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _child(folder, writer, command)
    os.close(writer)
    while time.monotonic() - started < WAITED and os.waitpid(process, os.WNOHANG) == (0, 0):
        time.sleep(0.005)
    record: dict[str, Any] = {
        "end": "ended without a word",
        "message": "",
        "length": 0,
        "seconds": 0,
        "bytes": 0,
    }
    if time.monotonic() - started >= WAITED:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        record |= {"end": "hangs", "seconds": WAITED}
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    record |= json.loads(told) if told else {}
    marked = (scratch / "here" / "mark").exists()
    return {"name": variant.name, **record, "foreign_code": marked}


def main() -> None:
    """Tries the variants of `names.json` in the scratch folder."""
    scratch = Path(sys.argv[1])
    names = json.loads((scratch / "names.json").read_text())
    variants = {"sound": Variant("sound", lambda folder: None), **all_variants()}
    models = {name: GOLDEN / f"{name}_adapter" for name in ("reward", "judge")}
    import medrm.cli
    import medrm.scorer.open  # noqa: F401 (before the forks)

    for name in ["sound", *names]:
        record = attempt(variants[name], scratch, models, "--command" in sys.argv)
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
