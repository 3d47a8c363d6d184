"""`medrm leaderboard`: one table from several models, resumed, whatever becomes of one of them."""

from __future__ import annotations

import csv
import json
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medrm.cli import main
from medrm.evaluation.leaderboard.standings import ListedModel
from medrm.pipeline import run_leaderboard as leaderboard
from medrm.pipeline.requests import LeaderboardRequest
from medrm.pipeline.run_leaderboard import evaluate_command

LIST = """
benchmark: phantom
models:
  - {name: Longer, model: "mock:longer"}
  - {name: Oracle, model: "mock:oracle"}
  - {name: Stranger, model: "nobody/nothing"}
  - {name: Refuser, model: "mock:refuse"}
  - {name: Coder, model: "nobody/code", remote_code: true}
  - {name: Unpublished, model: null, note: Weights are not public.}
  - {name: Served, model: some-model, engine: openai, proprietary: true}
  - {name: Fast, model: "nobody/fast", engine: vllm}
"""


class Board:
    """Runs the command on a small set, and keeps the words of each evaluation it starts."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.list = folder / "list.yaml"
        self.list.write_text(LIST, encoding="utf-8")
        self.output = folder / "out"
        self.started: list[list[str]] = []
        self._data = data

    def run(self, *arguments: str) -> int:
        self.started.clear()
        common = ["--data_root", str(self._data), "--output_dir", str(self.output)]
        return main(["leaderboard", str(self.list), *common, *arguments])

    def process(self, command: list[str], *, stdout: Any, **_: Any) -> Any:
        """Evaluates in this process, to spare the start of a new one."""
        self.started.append(command)
        with redirect_stdout(stdout), redirect_stderr(stdout):
            status = main(command[3:])
        return subprocess.CompletedProcess(command, status)

    @property
    def names(self) -> list[str]:
        """The models that were evaluated by the last run."""
        options = [word for command in self.started for word in command]
        return [
            word.removeprefix("--model_name=")
            for word in options
            if word.startswith("--model_name=")
        ]

    @property
    def table(self) -> dict[str, Any]:
        table: dict[str, Any] = json.loads((self.output / "leaderboard.json").read_text())
        return table


@pytest.fixture
def board(tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board(tmp_path, other)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("medrm.pipeline.run_leaderboard.subprocess.run", made.process)
    monkeypatch.setattr(
        "medrm.pipeline.leaderboard_preview.importlib.util.find_spec", lambda name: None
    )
    return made


def test_one_table_from_all_that_could_be_evaluated(
    board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    assert board.run() == 1
    table = board.table
    assert [row["name"] for row in table["models"]] == ["Oracle", "Longer", "Refuser"]
    oracle, _, refuser = table["models"]
    assert oracle["dimensions"]["overall"]["accuracy"] == 1.0
    assert oracle["dimensions"]["overall"]["official_micro"] == 1.0
    assert refuser["dimensions"]["overall"]["coverage"] == 0.0
    assert refuser["dimensions"]["overall"]["consistency"] == 0.0
    assert [row["name"] for row in table["failed"]] == ["Stranger"]
    assert "nobody/nothing" in table["failed"][0]["reason"]
    assert "Traceback" not in table["failed"][0]["reason"]
    reasons = {row["name"]: row["reason"] for row in table["skipped"]}
    assert "--trust_remote_code" in reasons["Coder"]
    assert reasons["Unpublished"] == "Weights are not public."
    assert "OPENAI_API_KEY" in reasons["Served"]
    assert "vLLM" in reasons["Fast"]
    assert "published" not in table
    with (board.output / "leaderboard.csv").open(encoding="utf-8") as lines:
        assert len(list(csv.DictReader(lines))) == 8
    assert "| 1 | Oracle | 100.0" in (board.output / "leaderboard.md").read_text()
    printed = capsys.readouterr().out
    assert printed.index("Oracle") < printed.index("Longer") < printed.index("failed: Stranger")


def test_models_are_told_apart_by_their_verdicts(board: Board) -> None:
    assert board.run("--only", "Longer", "Oracle", "Refuser") == 0
    overall = {row["name"]: row["dimensions"]["overall"] for row in board.table["models"]}
    assert [measures["rank_range"] for measures in overall.values()] == [[1, 1], [2, 2], [3, 3]]
    assert overall["Refuser"]["to_best"]["delta"] == -1.0
    page = (board.output / "leaderboard.html").read_text()
    assert "Oracle is the best of 3 models on overall, with 95 % confidence." in page


def test_what_was_evaluated_is_not_repeated(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ("--only", "Longer", "Oracle")
    assert board.run(*arguments) == 0
    assert board.names == ["Longer", "Oracle"]
    before = board.table
    with caplog.at_level("INFO", logger=leaderboard.__name__):
        assert board.run(*arguments) == 0
    assert board.names == []
    assert "Oracle: evaluated before, not repeated" in caplog.text
    assert board.table == before


def test_a_later_run_adds_to_the_table(board: Board) -> None:
    assert board.run("--only", "Longer") == 0
    assert board.run("--only", "Oracle") == 0
    assert [row["name"] for row in board.table["models"]] == ["Oracle", "Longer"]


def test_a_broken_off_evaluation_is_repeated(board: Board) -> None:
    assert board.run("--only", "Longer", "Oracle") == 0
    (board.output / "oracle" / leaderboard.REQUEST_FILE).unlink()
    (board.output / "longer" / "report.json").unlink()
    assert board.run("--only", "Longer", "Oracle") == 0
    assert board.names == ["Longer", "Oracle"]


def test_other_settings_are_evaluated_anew(board: Board) -> None:
    assert board.run("--only", "Oracle") == 0
    for arguments in (["--max_new_tokens", "9"], ["--judge_prompt", "json_per_dimension"]):
        assert board.run("--only", "Oracle", *arguments) == 0
        assert board.names == ["Oracle"]
    text = board.list.read_text().replace('"mock:oracle"}', '"mock:longer"}')
    board.list.write_text(text)
    assert board.run("--only", "Oracle") == 0
    assert board.names == ["Oracle"]
    assert board.table["models"][0]["model"] == "mock:longer"


def test_an_entry_may_ask_its_judge_otherwise(board: Board) -> None:
    text = board.list.read_text().replace(
        '"mock:oracle"}', '"mock:oracle", options: {max_new_tokens: 77}}'
    )
    board.list.write_text(text)
    assert board.run("--only", "Oracle", "Longer", "--max_new_tokens", "9") == 0
    commands = {command[5]: command for command in board.started}
    assert "--max_new_tokens=77" in commands["--model_name=Oracle"]
    assert "--max_new_tokens=9" in commands["--model_name=Longer"]


def test_models_are_read_as_the_whole_list_is(board: Board) -> None:
    inputs = ["--max_length", "900", "--dtype", "float32", "--deterministic"]
    inputs += ["--shared_prefix", "off"]
    board.run("--only", "Oracle", "--evaluation_batch_rows", "2", *inputs)  # a mock refuses them
    (words,) = board.started
    assert {"--evaluation_batch_rows=2", "--max_length=900", "--dtype=float32"} < {*words}
    assert {"--deterministic", "--shared_prefix=off"} < {*words}
    assert not any(word.startswith("--max_pixels") for word in words)
    assert board.run("--only", "Longer") == 0
    assert board.run("--only", "Longer", "--evaluation_batch_rows", "2") == 0
    assert board.names == []  # fewer rows at once are no other evaluation
    board.run("--only", "Longer", "--max_length", "900")
    assert board.names == ["Longer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evaluation_batch_rows", "0"], "evaluation_batch_rows is 0; give 1 or more"),
        (["--only", "Orakle"], "Did you mean 'Oracle'"),
        (["--primary_dimension", "acuracy"], "Did you mean 'accuracy'"),
        (["--benchmark", "phantm"], "Did you mean 'phantom'"),
        (["--votes", "3"], "judge_readout"),
        (["--judge_prompt", "jsn"], "Did you mean 'json'"),
    ],
)
def test_wrong_options_stop_before_the_first_model(
    arguments: list[str], message: str, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    assert board.run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert board.started == []


def test_names_match_without_regard_to_case(board: Board) -> None:
    assert board.run("--only", "oRACLE", "longer") == 0
    assert [row["name"] for row in board.table["models"]] == ["Oracle", "Longer"]


def test_the_list_says_what_is_missing(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(board.list), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["Longer"] == ["transformers", "mock:longer"]
    assert rows["Stranger"] == ["transformers", "nobody/nothing", "weights"]
    assert rows["Coder"] == ["transformers", "nobody/code", "--trust_remote_code,", "weights"]
    assert rows["Unpublished"] == ["transformers", "-", "a", "checkpoint"]
    assert rows["Served"] == ["openai", "some-model", "OPENAI_API_KEY"]
    assert rows["Fast"] == ["vllm", "nobody/fast", "package", "vllm,", "weights"]
    assert main(["leaderboard", str(board.list), "--list", "--only", "SERVED"]) == 0
    assert "Longer" not in capsys.readouterr().out
    assert not board.output.exists()


def test_all_lists_are_shown_where_none_is_named(
    board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaderboard", "--list"]) == 0
    assert "Qwen/Qwen2.5-VL-7B" in capsys.readouterr().out.replace("\n", "")
    assert main(["leaderboard", "--output_dir", "x"]) == 2
    assert "No leaderboard is named" in capsys.readouterr().err


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_count_where_all_of_them_lie(
    sharded: bool, board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    files = ["a.safetensors", "b.safetensors"] if sharded else ["model.safetensors"]
    if sharded:
        index = {"weight_map": {name: name for name in files}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    board.list.write_text(f"benchmark: phantom\nmodels:\n  - {{name: M, model: {folder}}}\n")
    for name in files:
        assert main(["leaderboard", str(board.list), "--list"]) == 0
        assert " weights" in capsys.readouterr().out.partition("missing,")[0]
        (folder / name).write_bytes(b"")
    assert main(["leaderboard", str(board.list), "--list"]) == 0
    assert " weights" not in capsys.readouterr().out.partition("missing,")[0]


def test_a_dry_run_counts_and_does_nothing(
    board: Board, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = board.list.read_text().replace(
        "proprietary: true}", "proprietary: true, price_per_million_prompt_tokens: 1000000}"
    )
    board.list.write_text(text + "  - {name: Base, model: phantom-base}\n")
    priced = ("--price_per_million_completion_tokens", "2000000", "--max_new_tokens", "10")
    assert (
        main(
            ["leaderboard", str(board.list), "--data_root", str(board._data), "--dry_run", *priced]
        )
        == 0
    )
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    calls, tokens, replies, cost = (
        float(cell.replace(",", "").lstrip("~")) for cell in rows["Served"][:4]
    )
    assert replies == 10 * calls
    assert cost == tokens + 2 * replies
    assert rows["Served"][1].startswith("~")
    assert "OPENAI_API_KEY" in " ".join(rows["Served"])
    assert not rows["Base"][1].startswith("~")
    assert "images" not in " ".join(rows["Base"])
    assert rows["Unpublished"][0] == "-"
    assert "Cost of all with a price: about" in printed
    assert board.started == []
    assert not board.output.exists()


def test_images_that_may_not_leave_skip_services(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    assert board.run("--only", "Served", "Oracle", "--no_remote_images") == 0
    (skipped,) = board.table["skipped"]
    assert "--no_remote_images" in skipped["reason"]
    assert board.names == ["Oracle"]
    assert "--no_remote_images" in board.started[0]


def test_a_model_id_is_data(tmp_path: Path) -> None:
    candidate = ListedModel("--name", "--output_dir=/tmp/x; rm -rf ~", remote_code=True)
    entry_request = {"benchmark": {"name": "phantom"}, "options": {"votes": 1}}
    request = LeaderboardRequest("list", ("medrm", "evaluate"), tmp_path)
    command = evaluate_command(candidate, entry_request, tmp_path, request)
    assert command[:3] == ["medrm", "evaluate", "--model=--output_dir=/tmp/x; rm -rf ~"]
    assert "--trust_remote_code" not in command
    trusting = replace(request, trust_remote_code=True)
    assert "--trust_remote_code" in evaluate_command(candidate, entry_request, tmp_path, trusting)
    plain = ListedModel("a", "b")
    assert "--trust_remote_code" not in evaluate_command(plain, entry_request, tmp_path, trusting)


def test_a_killed_process_is_a_failed_entry(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(command: list[str], *, stdout: Any, **_: Any) -> Any:
        stdout.write("loading\n")
        stdout.flush()
        return subprocess.CompletedProcess(command, -9)

    monkeypatch.setattr("medrm.pipeline.run_leaderboard.subprocess.run", killed)
    assert board.run("--only", "Oracle", "Longer") == 1
    reasons = [row["reason"] for row in board.table["failed"]]
    assert reasons == ["loading\n(killed by signal 9)"] * 2


def test_a_service_that_answers_nothing_is_a_failed_entry(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unanswered(command: list[str], **_: Any) -> Any:
        folder = board.output / "served"
        line = {"state": "error", "reason": "HTTP 404: no such model"}
        (folder / "responses.jsonl").write_text(json.dumps(line) + "\n")
        report = {"parsing": {"states": {"error": 32}}, "structure": None}
        (folder / "report.json").write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("medrm.pipeline.run_leaderboard.subprocess.run", unanswered)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    assert board.run("--only", "Served") == 1
    assert "HTTP 404: no such model" in board.table["failed"][0]["reason"]
    assert board.table["models"] == []


@pytest.mark.slow
def test_each_model_is_evaluated_in_a_process_of_its_own(tmp_path: Path, other: Path) -> None:
    real = Board(tmp_path, other)
    assert real.run("--only", "Oracle", "Stranger") == 1
    assert [row["name"] for row in real.table["models"]] == ["Oracle"]
    assert "nobody/nothing" in real.table["failed"][0]["reason"]
    assert "Oracle" in (real.output / "oracle" / leaderboard.LOG_FILE).read_text()
