"""A word is planted in every text and path of a data set, and looked for in all that leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline.entry import Recipe
from planted import MACHINE, WORDS, found, plant_data, plant_machine, word

from medrm.cli import main
from medrm.hub.release import Target, plan_release
from medrm.models.training_images import DIGESTS_FILE


@pytest.mark.slow
def test_what_leaves_a_run_holds_no_word_of_the_data(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    home = plant_machine(tmp_path, monkeypatch)
    votes, run = plant_data(home, cases=40), home / "run"
    output = {"train_data": votes, "output_dir": run, "report_to": "tensorboard"}
    assert recipe(**output, max_steps=1, save_steps=1, eval_steps=1) == 0
    assert {word("home"), word("file")} <= {hit.split(" in ")[0] for hit in found([run])}
    assert not found([run / "runs"])
    assert list((run / "runs").rglob("*tfevents*"))
    for card in ("as it was written", "made anew"):
        release = plan_release(run, Target("org/model"), lambda *_: False)
        leaving = tmp_path / card
        for name, content in release.files.items():
            path = leaving / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        assert not found([leaving])
        assert not found([leaving], [str(tmp_path)])
        assert not (leaving / DIGESTS_FILE).exists()
        digests = np.load(run / DIGESTS_FILE)
        contents = b"".join(path.read_bytes() for path in leaving.iterdir())
        assert len(digests)
        assert not any(
            form in contents
            for row in digests
            for form in (bytes(row), row.tobytes().hex().encode())
        )
        (run / "adapter" / "README.md").unlink(missing_ok=True)
    asked = plan_release(run, Target("org/model", training_digests=True), lambda *_: False)
    assert asked.files[DIGESTS_FILE] == (run / DIGESTS_FILE).read_bytes()
    evaluated = [run / "evaluation", run / "comparison.json", run / "report.html"]
    assert not found([*evaluated, run / "metrics.jsonl"], [*MACHINE, str(tmp_path)])
    assert main(["report", str(run), "--no_images", "--no_texts", "--export"]) == 0
    assert not found([run / "report.html", run / "exports"], [*WORDS, str(tmp_path)])
