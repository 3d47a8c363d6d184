"""`medrm score`: every row of a file, in order, resumable, with the model's own rewards."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scorer.cases import stored_image

import medrm
from medrm.cli import main
from medrm.folder_lock import hold
from medrm.models.adapter_config import update_adapter_config
from medrm.pipeline import score, score_parts
from medrm.scorer.readouts.answer_rewards import RewardModel

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "reward_adapter"
ONE = ("--evaluation_batch_rows", "1")
ANSWERS = ("Clear.", "A nodule is seen on the left.", "I cannot tell.")


def table(count: int) -> list[dict[str, Any]]:
    """Rows of one to three answers, every third without an image."""
    return [
        {
            "case_id": f"case-{number}",
            "question": f"Is there a nodule in lobe {number}?",
            "answers": list(ANSWERS[: 1 + number % 3]),
            "images": [{"bytes": stored_image(number % 4).read(), "path": None}] * bool(number % 3),
        }
        for number in range(count)
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as JSON lines; images as files beside them and as data URLs by turns."""
    lines = []
    for number, row in enumerate(rows):
        images = []
        for image in row["images"]:
            if number % 2:
                text = base64.b64encode(image["bytes"]).decode()
                images.append(f"data:image/png;base64,{text}")
            else:
                (path.parent / f"{number}.png").write_bytes(image["bytes"])
                images.append(f"{number}.png")
        lines.append(json.dumps({**row, "images": images}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(source: Path | str, output: Path | str, *options: str, status: int = 0) -> None:
    words = ["--model", str(GOLDEN), "--input", str(source), "--output", str(output)]
    assert main(["score", *words, *ONE, *options]) == status


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "rows.jsonl", table(20))


def test_a_file_has_the_rewards_of_the_model(rows: Path, tmp_path: Path) -> None:
    run(rows, tmp_path / "scores.jsonl", "--best_of_n", "--dimension", "accuracy")
    scored = read(tmp_path / "scores.jsonl")
    model = medrm.load(GOLDEN, batch_rows=1)
    expected = list(model.score_cases(table(20)))
    assert [line["row"] for line in scored] == list(range(1, 21))
    for line, (row, rewards) in zip(scored, expected, strict=True):
        assert (line["case_id"], line["state"]) == (row["case_id"], "ok")
        found = np.array([line["rewards"][name] for name in model.dimensions]).T
        assert np.array_equal(found.astype(np.float32), rewards)
        assert line["best"] == found[:, model.dimensions.index("accuracy")].argmax()
        assert line["best_answer"] == row["answers"][line["best"]]
    assert not list(tmp_path.glob("*.*part*"))
    parquet = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(table(20)), parquet)
    run(parquet, tmp_path / "scores.parquet")
    others = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    for line, other in zip(scored, others, strict=True):
        assert other["rewards"] == line["rewards"]
        assert other["case_id"] == line["case_id"]


def test_a_stopped_start_goes_on_at_the_next_window(
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    run(rows, tmp_path / "straight.jsonl")
    scored, windows = score._score, []

    def stopping(plan: Any, scorer: Any, window: Any) -> Any:
        if len(windows) == 2:
            raise KeyboardInterrupt
        windows.append(window)
        return scored(plan, scorer, window)

    with monkeypatch.context() as patch:
        patch.setattr(score, "_score", stopping)
        run(rows, tmp_path / "scores.jsonl", status=130)
    assert not (tmp_path / "scores.jsonl").exists()
    (part,) = tmp_path.glob("scores.jsonl.*.scores-part")
    whole = part.read_bytes()
    assert whole.count(b'"window"') == 2
    part.write_bytes(whole[: len(whole) - 40])  # the second window is torn
    computed: list[int] = []

    def counting(plan: Any, scorer: Any, window: Any) -> Any:
        computed.append(len(window))
        return scored(plan, scorer, window)

    monkeypatch.setattr(score, "_score", counting)
    run(rows, tmp_path / "scores.jsonl")
    assert computed == [8, 4]  # of windows of 8, 8 and 4 rows the first one is there
    straight = (tmp_path / "straight.jsonl").read_bytes()
    assert (tmp_path / "scores.jsonl").read_bytes() == straight
    run(rows, tmp_path / "scores.jsonl")
    assert computed == [8, 4]
    assert "is finished" in caplog.text
    run(rows, tmp_path / "scores.jsonl", "--best_of_n", status=2)
    assert "holds other rows or rewards" in capsys.readouterr().err
    run(rows, tmp_path / "scores.jsonl", "--best_of_n", "--overwrite_output")
    assert "best" in read(tmp_path / "scores.jsonl")[0]


def test_replaced_images_are_scored_again(
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    scored, computed = score._score, []

    def stopping(plan: Any, scorer: Any, window: Any) -> Any:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(window[0].number)
        return scored(plan, scorer, window)

    with monkeypatch.context() as patch:
        patch.setattr(score, "_score", stopping)
        run(rows, tmp_path / "scores.jsonl", status=130)
        (tmp_path / "10.png").write_bytes(stored_image(7).read())
        computed.clear()
        run(rows, tmp_path / "scores.jsonl")
    assert computed == [9, 17]  # the first of three windows is as it was
    assert "1 windows are computed again: their images have changed" in caplog.text
    run(rows, tmp_path / "straight.jsonl")
    straight = (tmp_path / "straight.jsonl").read_bytes()
    assert (tmp_path / "scores.jsonl").read_bytes() == straight
    (tmp_path / "10.png").write_bytes(stored_image(8).read())
    run(rows, tmp_path / "scores.jsonl", status=2)
    assert "rewards of other images under the same paths" in capsys.readouterr().err


def test_progress_is_logged_where_no_terminal_is(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name, seconds in (("_SECONDS_BETWEEN_LINES", (0.0, 0.0)), ("_BURST", 0.0)):
        monkeypatch.setattr(f"medrm.progress_bar.{name}", seconds)
    run(rows, tmp_path / "scores.jsonl")
    told = [message for message in caplog.messages if message.startswith("rows: ")]
    counted = [f"rows: {count} of 20" for count in (8, 16, 20)]
    assert [message.split(";")[0] for message in told] == counted
    assert told[-1].endswith(" a second, 0.0 min to go")


def test_what_cannot_be_scored_keeps_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    good = {"question": "Is it?", "answers": ["Yes."]}
    lines = [
        json.dumps(good),
        "no json",
        "[1]",
        json.dumps({"question": "Is it?"}),
        json.dumps({**good, "images": ["../outside.png"]}),
        json.dumps({**good, "answers": []}),
        json.dumps({**good, "images": ["https://example.org/a.png"]}),
        json.dumps({**good, "images": [base64.b64encode(b"x" * 400).decode()]}),
        json.dumps({**good, "images": [{"bytes": base64.b64encode(b"none").decode()}]}),
        json.dumps(good),
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    run(source, tmp_path / "scores.jsonl")
    scored = read(tmp_path / "scores.jsonl")
    assert [line["row"] for line in scored] == list(range(1, 11))
    states = [line["state"] for line in scored]
    assert states == ["ok", *["bad_row"] * 6, "bad_image", "bad_image", "ok"]
    assert scored[0]["rewards"] == scored[9]["rewards"]
    reasons = ["JSON", "list", "'answers'", "outside", "no answer", "nothing is fetched"]
    for line, reason in zip(scored[1:7], reasons, strict=True):
        assert reason in line["reason"]
    assert "File name too long" in scored[7]["reason"]
    assert len(scored[7]["reason"]) < 400
    assert "cannot be decoded" in scored[8]["reason"]
    told = caplog.text
    assert "2 of 10 rows scored (6 bad_row, 2 bad_image; paths of images are relative" in told
    assert told.count("has no reward") == 5
    source.write_text("\n".join(lines[1:4]), encoding="utf-8")
    run(source, tmp_path / "none.jsonl", status=2)
    assert "None of 3 rows has a reward (3 bad_row)" in capsys.readouterr().err
    assert len(read(tmp_path / "none.jsonl")) == 3
    source.write_text(json.dumps(good), encoding="utf-8")
    run(source, tmp_path / "none.jsonl")  # nothing is lost where no row had a reward
    assert read(tmp_path / "none.jsonl")[0]["state"] == "ok"


def test_rewards_are_normalised_by_the_development_cases(
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dimensions = medrm.load(GOLDEN).dimensions
    adapter = shutil.copytree(GOLDEN, tmp_path / "adapter")
    update_adapter_config(adapter, score_statistics={})
    monkeypatch.setattr(sys.modules[__name__], "GOLDEN", adapter)
    run(rows, tmp_path / "scores.jsonl", "--normalise", status=2)
    assert "--normalise needs the mean" in capsys.readouterr().err
    about = {"mean": 0.5, "std": 2.0}
    update_adapter_config(adapter, score_statistics=dict.fromkeys(dimensions, about))
    run(rows, tmp_path / "untold.jsonl", "--normalise")
    assert set(read(tmp_path / "untold.jsonl")[2]["win_probability"].values()) == {None}
    assert "No win probability on " in caplog.text
    about["temperature"] = 1.5
    update_adapter_config(adapter, score_statistics=dict.fromkeys(dimensions, about))
    run(rows, tmp_path / "scores.jsonl", "--normalise")
    line = next(line for line in read(tmp_path / "scores.jsonl") if line["row"] == 3)
    for name, rewards in line["rewards"].items():
        assert line["normalised"][name] == [(reward - 0.5) / 2 for reward in rewards]
        first, *others = rewards
        wins = [1 / (1 + np.exp((other - first) / 1.5)) for other in others]
        assert line["win_probability"][name][0] == pytest.approx(np.mean(wins))
    alone = read(tmp_path / "scores.jsonl")[0]
    assert set(alone["win_probability"].values()) == {None}


def test_standard_input_and_output(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(rows, tmp_path / "scores.jsonl")
    capsys.readouterr()
    stream = io.TextIOWrapper(io.BytesIO(rows.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    run("-", "-", "--image_root", str(tmp_path))
    assert capsys.readouterr().out == (tmp_path / "scores.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "absent.jsonl"], "There is no input 'absent.jsonl'"),
        (["--input", __file__], "is no data file"),
        (["--best_of_n", "--dimension", "overal"], "Did you mean 'overall'"),
        (["--dimension", "overall"], "give --best_of_n"),
        (["--output", "scores.csv"], "accepted are .jsonl, .parquet, and -"),
        (["--evaluation_batch_rows", "0"], "give 1 or more"),
        (["--model", "mock:longer"], "gives no rewards"),
        (["--model", "no/such/folder"], "There is no folder 'no/such/folder'; a hub id looks"),
        (["--model", "ORG/NAME@REV"], "Give 'ORG/NAME' and the revision apart: revision='REV'"),
        (["--model", "phantom-base"], "is no saved model of medrm"),
        (["--model", "runs/adapter"], "there is no such folder here, the cache lacks it"),
        (["--output", __file__ + "/scores.jsonl"], "cannot be written"),
    ],
)
def test_wrong_options_are_named(
    words: list[str],
    message: str,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of it before the model's weights are loaded."""
    monkeypatch.delattr(score, "open_scorer")
    options = f"--model {GOLDEN} --input {rows} --output {tmp_path}/s.jsonl".split()
    assert main(["score", *options, *words]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(score, "open_scorer")
    (tmp_path / "rows.jsonl").touch()
    words = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "s.jsonl")]
    assert main(["score", "--model", str(GOLDEN), *words]) == 2
    assert "has no row to score; nothing was written" in capsys.readouterr().err


@pytest.mark.distributed
def test_two_processes_write_the_same_file(rows: Path, tmp_path: Path) -> None:
    run(rows, tmp_path / "one.jsonl")
    config = yaml.safe_load((ROOT / "accelerate_configs" / "ddp.yaml").read_text("utf-8"))
    config |= {"use_cpu": True, "num_processes": 2, "main_process_port": 0}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    launcher = ["accelerate.commands.launch", "--config_file", str(tmp_path / "launch.yaml")]
    words = ["--model", str(GOLDEN), "--input", str(rows), "--output", str(tmp_path / "two.jsonl")]

    def launched() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *launcher, "-m", "medrm", "score", *words, *ONE],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    with hold(tmp_path, "two.jsonl.lock", str):
        refused = launched()
    assert (refused.returncode != 0, refused.stderr.count("is being written by")) == (True, 1)
    done = launched()
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert done.stderr.count("20 of 20 rows scored") == 1


@pytest.mark.gpu
def test_a_gpu_scores_a_file(rows: Path, tmp_path: Path) -> None:
    run(rows, tmp_path / "scores.jsonl")
    assert torch.cuda.max_memory_allocated() > 0
    model = medrm.load(GOLDEN, device="cuda", batch_rows=1)
    assert isinstance(model, RewardModel)


def test_output_goes_through_links_and_pipes(rows: Path, tmp_path: Path) -> None:
    run(rows, tmp_path / "scores.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target.jsonl")
    run(rows, tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    expected = (tmp_path / "scores.jsonl").read_bytes()
    assert (tmp_path / "target.jsonl").read_bytes() == expected
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    run(rows, pipe)
    reader.join(timeout=20)
    assert received == [expected]
    assert not list(tmp_path.glob("*.*part*"))


@pytest.mark.slow
def test_an_output_is_no_input_and_one_starts_at_a_time(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, output in ((tmp_path, tmp_path / "scores.jsonl"), (rows, rows)):
        run(source, output, status=2)
        assert "lies where the rows are read from" in capsys.readouterr().err
    with hold(tmp_path, "scores.jsonl.lock", str):
        run(rows, tmp_path / "scores.jsonl", status=2)
    assert "is being written by" in capsys.readouterr().err


def test_an_incomplete_output_is_never_written(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = score_parts.ScoreParts._index
    monkeypatch.setattr(
        score_parts.ScoreParts,
        "_index",
        lambda parts: {n: at for n, at in index(parts).items() if n != 1},
    )
    with pytest.raises(RuntimeError, match=r"1 of 3 windows .* are not there, such as 1"):
        run(rows, tmp_path / "scores.jsonl")
    assert not (tmp_path / "scores.jsonl").exists()
