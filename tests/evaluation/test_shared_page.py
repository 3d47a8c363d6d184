"""What may be shown outside holds no word of the data; nothing that is shown names the machine.

A word is planted in every text and path of a set, and looked for in all that is written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_runs import made_run as made_by_hand
from mock_scorers import Writer
from planted import MACHINE, WORDS, found, plant_data, plant_machine, word
from transformers.integrations.integration_utils import TensorBoardCallback

from medrm.chat import PROMPTS
from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.errors import without_paths
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import NamedModel, evaluate
from medrm.evaluation.leaderboard.leaderboard_tables import write_leaderboard
from medrm.evaluation.leaderboard.standings import ListedModel, ModelResult, standings
from medrm.evaluation.report import read_report, write_json
from medrm.evaluation.shared_run import SharedNames
from medrm.pipeline.evaluate import recorded_identity
from medrm.pipeline.tensorboard_log import CurvesAlone
from medrm.schema import DIMENSIONS

GOLDEN = Path(__file__).parents[1] / "golden"


class Talker(Writer):
    """A judge that says a word of its own, and finds the first answer better where asked to."""

    def __init__(self, better: str) -> None:
        verdict = PROMPTS["json"].verdict(dict.fromkeys(DIMENSIONS, better)).text
        super().__init__(lambda *_: f"{word('reply')} {verdict}")


def made_run(home: Path) -> Path:
    """A run folder of a judge, by medrm's own writers, whose first case has no image any more."""
    votes, run = plant_data(home, cases=10), home / "run"
    source = read_set(str(votes))
    lost = source.cases[0].images[0].name
    (votes.parent / lost).unlink()
    benchmark = Benchmark(source.name, source)
    settings = {"prompt": f"{word('prompt')} 0", "engine": "transformers"}
    for side, better in (("before", "A"), ("after", "B")):
        model = NamedModel(f"base ({side})", recorded_identity(f"{side} at {word('host')}"))
        folder = run / "evaluation" / side
        evaluate(Talker(better), benchmark, folder, model, settings=settings, images=True)
    compare(run / "evaluation" / "before", run / "evaluation" / "after", output_dir=run)
    excluded = [{"case_id": word("case"), "reason": f"Image {word('image')!r} cannot be decoded"}]
    config = {
        **{"train_data": str(votes), "output_dir": str(run), "lora_r": 8, "objective": "judge_sft"},
        **{"model_name_or_path": str(home / "base model"), "prompt_file": word("prompt")},
    }
    data = {"train": {"name": source.name, "cases": 9}, "excluded": excluded}
    about = {"config": config, "seed": 3, "versions": {"torch": "2"}, "data": data}
    write_json(run / "run.json", about)
    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return made_run(plant_machine(tmp_path, monkeypatch))


def test_a_page_that_may_be_shown_holds_no_word_of_the_data(run: Path) -> None:
    assert main(["report", str(run)]) == 0
    (run / "exports").mkdir()
    earlier = pa.table({"case_id": [word("case")]})
    pq.write_table(earlier, run / "exports" / "verdicts.parquet", compression="zstd")
    assert found([run / "exports"])
    shown = [run / "report.html", run / "exports"]
    # The search finds what stands there.
    seen = {hit.split(" in ")[0] for hit in found([run])}
    unseen = {word(name) for name in ("annotator", "patient", "study", "token", "pixel", "host")}
    assert seen >= {*WORDS} - unseen
    assert {hit.split(" in ")[0] for hit in found(shown)} >= {
        *map(word, ("case", "question", "answera", "reply", "organ", "source", "modality"))
    }
    assert not found([run / "evaluation", run / "comparison.json", *shown], MACHINE)
    assert not found([run / "evaluation" / "after" / "images"])
    problems = [
        image["problem"]
        for line in (run / "evaluation" / "after" / "cases.jsonl").read_text().splitlines()
        for image in json.loads(line)["images"]
        if "problem" in image
    ]
    assert problems
    assert all("No such file" in problem for problem in problems)
    for options in (["--no_texts"], ["--no_images", "--no_texts", "--export"]):
        assert main(["report", str(run), *options]) == 0
        assert not found(shown if "--export" in options else shown[:1])
        page = (run / "report.html").read_text(encoding="utf-8")
        assert "Made to be shown" in page
        assert "organ 1" in page
        assert "organ 2" in page
        assert "<script" not in page
        assert "data:image" not in page
        digest = read_report(run / "evaluation" / "after")["benchmark"]["digest"]
        assert digest in page  # of the whole set
        for line in (run / "evaluation" / "after" / "cases.jsonl").read_text().splitlines():
            case = json.loads(line)
            assert case["cluster"] not in page
            assert not any(image["digest"][:12] in page for image in case["images"])
    assert not (run / "exports" / "verdicts.parquet").exists()
    assert "organ,organ 1," in (run / "exports" / "summary.csv").read_text(encoding="utf-8")


def test_one_evaluation_may_be_shown_as_well(run: Path) -> None:
    folder = run / "evaluation" / "after"
    assert main(["report", str(folder), "--no_images", "--no_texts"]) == 0
    assert not found([folder / "report.html"])
    assert "leak_check: not_recorded" in (folder / "report.html").read_text(encoding="utf-8")


def test_known_members_keep_their_names_and_others_are_numbered() -> None:
    organs = ("lung", "Ms Doe", "brain", "Mr Doe")
    run = made_by_hand(("accuracy", "overall"), organs)
    names = SharedNames(run)
    assert names.by_group["organ"] == {
        "brain": "brain", "lung": "lung", "Mr Doe": "organ 1", "Ms Doe": "organ 2"
    }  # fmt: skip
    shared = names.run(run)
    assert "Doe" not in json.dumps([shared.before, shared.after, shared.comparison])
    assert "Doe" in json.dumps(run.after)  # which is left alone
    measured = run.after["protocols"]["robust"]["groups"]["organ"]["Ms Doe"]
    assert shared.after["protocols"]["robust"]["groups"]["organ"]["organ 2"] == measured


@pytest.mark.parametrize("version", ["", "0.3"])
@pytest.mark.parametrize("name", ["judge", "reward", "base_likelihood"])
def test_evaluations_of_earlier_versions_may_be_shown(
    version: str, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    shutil.copytree(GOLDEN / version / "evaluations" / name, folder)
    assert main(["report", str(folder), "--no_images", "--no_texts"]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "leak_check: not_recorded" in page
    cases = (folder / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    assert cases
    assert not any(json.loads(line)["case_id"] in page for line in cases)


class Clock:
    """What a callback is told of a training."""

    is_world_process_zero, is_hyper_param_search, global_step = True, False, 1


def test_tensorboard_is_told_the_curves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    home = plant_machine(tmp_path, monkeypatch)
    arguments = SimpleNamespace(
        output_dir=str(home / "run"), to_json_string=lambda: json.dumps({"dir": str(home / "run")})
    )
    model = SimpleNamespace(config=SimpleNamespace(to_json_string=lambda: str(home / "base")))
    for callback, hits in ((TensorBoardCallback, True), (CurvesAlone, False)):
        arguments.output_dir = str(home / callback.__name__)
        writer: Any = callback()
        writer.on_train_begin(arguments, Clock(), None, model=model)
        writer.on_log(arguments, Clock(), None, logs={"loss": 0.25})
        writer.on_train_end(arguments, Clock(), None)
        folder = home / callback.__name__ / "runs"
        assert bool(found([folder])) == hits
        (events,) = (path for path in folder.rglob("*") if path.is_file())
        assert b"train/loss" in events.read_bytes()


def test_leaderboards_name_no_path(run: Path, tmp_path: Path) -> None:
    source = read_set(str(next(run.parent.rglob(f"{word('file')}.jsonl"))))
    listed = ListedModel("a model", str(run.parent / "models" / "seven b"))
    reason = f"{run.parent}/models/config.json was not found: see '{run}/x y.log'"
    failed = ModelResult(listed, "failed", reason=reason)
    write_leaderboard(
        tmp_path / "board", standings("mine", Benchmark("cases", source), "accuracy", [failed])
    )
    assert not found([tmp_path / "board"], MACHINE)
    text = (tmp_path / "board" / "leaderboard.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert "see 'x y.log'" in text
    assert '"model": "seven b"' in text


def test_hosts_of_ones_own_network_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node17.clinic.org")
    for host in ("node18", "node17.clinic.org", "10.1.2.3", "192.168.0.9"):
        recorded = recorded_identity(f"a judge at home at {host}")
        assert recorded.startswith("a judge at home at host ")
        assert host not in recorded
        assert recorded == recorded_identity(f"a judge at home at {host}")
    for host in ("api.openai.com", "127.0.0.1", "localhost", "9.9.9.9"):
        assert recorded_identity(f"m at {host}") == f"m at {host}"


def test_paths_are_told_from_other_text() -> None:
    home = Path.home()
    for text, shown in {
        f"{home}/my scans/a.png": "a.png",
        f"see '{home}/my scans/a.png', please": "see 'a.png', please",
        f'{{"dir": "{home}"}}': '{"dir": "~"}',
        "at /mnt/scans/a.png: gone": "at a.png: gone",
        "C:\\Users\\eve\\a.png": "a.png",
        "chosen/rejected, 3/4 and https://hub.org/a/b": "chosen/rejected, 3/4 and https://hub.org/a/b",
    }.items():
        assert without_paths(text) == shown
