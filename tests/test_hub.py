"""The model card of a run, and pushing an adapter folder to a hub on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback_hub import LoopbackHub
from tiny import save_tiny, tiny_image

from medrm.config.options import AdapterOptions, JudgeOptions, ModelOptions
from medrm.config.parse import parse_run
from medrm.data.case_set import CaseSet
from medrm.errors import AdapterError, ConfigError, DataError
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.report import write_json
from medrm.hub import check_push, push, write_card
from medrm.models.adapter import add_adapter, save_adapter
from medrm.models.adapter_config import new_adapter_config, update_adapter_config
from medrm.models.base_model import load_base
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.objectives.objective import BradleyTerryConfig
from medrm.pipeline.manifest import manifest_of
from medrm.schema import Case, PairLabel, Response
from medrm.scorer.specs import judge_spec

HOSTILE = "set | <script>alert(1)</script> `x` [a](b)\n# heading"
DIMENSIONS = ("accuracy", "relevance")


class Fixed:
    """Prefers the labelled answer where `right` says so; knows the accuracy alone."""

    dimensions = ("accuracy",)
    lookahead = None

    def __init__(self, readout: str, correct: Sequence[bool]) -> None:
        self.readout, self.correct = readout, correct

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        for case, is_correct in zip(cases, self.correct, strict=True):
            yield Response(
                *(case.case_id, "forward", None, 0, self.readout, "", None, None, None, "ok"),
                rewards={"accuracy": (1.0, 0.0) if is_correct else (0.0, 1.0)},
            )


def hand_made_cases() -> tuple[Case, ...]:
    labels = {name: PairLabel((1.0, 0.0, 0.0)) for name in DIMENSIONS}
    return tuple(
        Case(f"case-{n}", (), "Which?", ("one", "two"), labels, f"cluster-{n}") for n in range(20)
    )


def write_run(folder: Path, name: str = HOSTILE, synthetic: bool = True) -> Path:
    """Writes a run folder by medrm's own writers, with hand-made verdicts."""
    base = save_tiny("qwen2_5_vl", folder / "a base")
    options = ModelOptions(str(base))
    model = attach_head(
        load_base(options, "cpu"),
        HeadSpec(kind="mlp", dimensions=("accuracy",), hidden_size=16),
        seed=0,
    )
    model = add_adapter(model, AdapterOptions(lora_r=4))
    processor = load_processor(str(base))
    run_dir = folder / "run"
    run_dir.mkdir()
    contract = new_adapter_config(model, processor, options, "bradley_terry", "reward")
    save_adapter(run_dir / "adapter", model, processor, contract)
    arguments = [
        "--train_data",
        "x",
        "--model_name_or_path",
        str(base),
        "--output_dir",
        str(run_dir),
    ]
    recipe = folder / "recipe.yaml"
    recipe.write_text("use_cpu: true\nlora_r: 4\n")
    run = parse_run(
        ["--config", str(recipe), *arguments], {"bradley_terry": lambda: BradleyTerryConfig}, recipe
    )
    train = {"name": name, "revision": "local", "digest": "e" * 64, "cases": 123}
    write_json(run_dir / "run.json", manifest_of(run, {"train": train}, {}))
    cases = hand_made_cases()
    source = CaseSet(
        name="hand-made",
        revision="local",
        digest="d" * 64,
        cases=cases,
        dimensions=DIMENSIONS,
        ceiling={"accuracy": 0.96},
        synthetic=synthetic,
    )
    benchmark = Benchmark("hand_made", source)
    half = [n % 2 == 0 for n in range(len(cases))]
    folders = {name: run_dir / "evaluation" / name for name in ("before", "after", "frozen_probe")}
    evaluate(Fixed("likelihood", half), benchmark, folders["before"], str(base))
    evaluate(Fixed("reward", [True] * 19 + [False]), benchmark, folders["after"], "adapter")
    evaluate(Fixed("reward", half), benchmark, folders["frozen_probe"], str(base))
    compare(
        folders["before"],
        folders["after"],
        "accuracy",
        {"frozen_probe": folders["frozen_probe"]},
        ["readout"],
        run_dir,
    )
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def card(run_dir: Path) -> str:
    path = write_card(run_dir / "adapter", run_dir)
    assert path == run_dir / "adapter" / "README.md"
    return path.read_text(encoding="utf-8")


def test_the_cards_numbers_are_those_of_the_run(card: str) -> None:
    assert "| accuracy (primary) | 50.0 | 95.0 (" in card
    assert "+45.0 (" in card
    assert "| 20 | 96.0 |" in card
    assert "| frozen base, trained head | 50.0 | +45.0 (" in card
    assert "labels do not mention them: relevance." in card
    assert "Improved on accuracy: 50.0 % -> 95.0 %" in card
    assert "better than the best rule without a model (always the first answer: 100.0 %)" in card
    assert re.search(r"is right in 100.0 % on accuracy; .* is at -5\.0 points", card)
    assert "| training cases | 123 |" in card
    assert "LoRA of rank 4" in card
    assert "torch 2" in card
    assert "not for patient care" in card
    assert "made of drawn pictures" in card


def test_the_header_is_what_the_hub_reads(card: str) -> None:
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "peft"
    assert "base_model" not in header  # a folder of the user's is no repository
    assert {"medrm", "reward-model", "bradley-terry"} <= set(header["tags"])
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["name"] == "hand_made"
    robust, official = result["metrics"]
    assert robust["type"] == official["type"] == "accuracy"
    assert robust["name"] == "robust accuracy (accuracy)"
    assert robust["value"] == pytest.approx(0.95)
    assert robust["args"]["n"] == 20
    assert official["name"] == "official accuracy (accuracy)"
    assert official["value"] == pytest.approx(0.95)


def test_a_card_says_that_it_was_scored_deterministically(tmp_path: Path) -> None:
    run = write_run(tmp_path)

    def set_deterministic(report: Any) -> None:
        report["rounding"] = {"deterministic": True}
        report["within_noise"] = {"accuracy": {"noise": 0.0, "margins": 20, "within": 0}}

    assert "deterministically" not in write_card(run / "adapter", run).read_text()
    rewritten(run / "evaluation" / "after" / "report.json", set_deterministic)
    assert "known. Scored deterministically: no" in write_card(run / "adapter", run).read_text()


def test_foreign_text_is_escaped(card: str) -> None:
    (line,) = [line for line in card.splitlines() if line.startswith("| training data |")]
    assert "<" not in line
    assert r"\[a\](b)" in line
    assert r"\`x\`" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 3  # the table's own bars alone


def test_no_local_path_is_told(card: str, run_dir: Path) -> None:
    assert str(run_dir.parent) not in card
    assert "a base" in card


def test_the_snippet_runs(
    card: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    tiny_image().save(run_dir / "scan.png")
    monkeypatch.chdir(run_dir)
    exec(compile(snippet, "README.md", "exec"), {})
    assert re.fullmatch(
        r"\{'accuracy': np\.float32\(-?[\d.e-]+\)\}", capsys.readouterr().out.strip()
    )


def rewritten(path: Path, change: Callable[[Any], None]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def copied(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copied"))


def of_trl(record: Any) -> None:
    del record["config"]["global_batch_cases"]
    record["config"] |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}


def test_the_card_of_a_judge(copied: Path, tmp_path: Path) -> None:
    start = tmp_path / "sft_run" / "adapter"
    start.mkdir(parents=True)

    def from_sft(record: Any) -> None:
        of_trl(record)
        record["config"]["init_adapter"] = str(start)

    def twice(record: Any) -> None:
        record["protocols"]["robust"]["dimensions"]["accuracy"] |= {
            "coverage": 0.75, "consistency": 0.625
        }  # fmt: skip

    note = "Part of the gain is position."
    rewritten(copied / "run.json", from_sft)
    rewritten(copied / "comparison.json", lambda record: record.update(notes=[note]))
    rewritten(copied / "evaluation" / "before" / "report.json", twice)
    adapter = copied / "adapter"
    judge = {"judge": judge_spec(JudgeOptions()), "head": None, "readout": "generate"}
    update_adapter_config(adapter, objective="judge_dpo", **judge)
    text = write_card(adapter, copied).read_text(encoding="utf-8")
    assert "75.0 % of the verdicts could be read before and 100.0 % after; 62.5 % of" in text
    assert r"the LoRA adapter sft\_run, trained further" in text
    assert "| pairs per step and process | 12 |" in text
    assert "| prompt | json, version 1 |" in text
    assert "reward template" not in text
    assert text.index(note) < text.index("## Intended use")
    assert str(tmp_path) not in text
    assert "judge" in yaml.safe_load(text.split("---")[1])["tags"]


def test_the_card_of_an_implicit_reward(copied: Path) -> None:
    rewritten(copied / "run.json", of_trl)
    update_adapter_config(
        copied / "adapter", objective="judge_dpo", head=None, readout="implicit_reward",
        implicit_beta=0.25,
    )  # fmt: skip
    text = write_card(copied / "adapter", copied).read_text(encoding="utf-8")
    assert "| reward | 0.25 x (log probability of the answer with the adapter" in text
    assert "A reward model for answers" in text
    assert "could be read" not in text
    assert "reward template" not in text


def test_a_run_without_evaluation_has_no_card(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((run_dir / "run.json").read_text())
    with pytest.raises(DataError, match=r"report\.json"):
        write_card(run_dir / "adapter", tmp_path)
    with pytest.raises(AdapterError, match=r"medrm\.json"):
        write_card(tmp_path, run_dir)


def test_pushing_offline_is_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        push(run_dir / "adapter", "user/reward-model")
    with pytest.raises(ConfigError, match="no name of a repository"):
        push(run_dir / "adapter", "a/b/c")


def test_what_keeps_a_push_from_working_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        check_push("user/reward-model")
    with pytest.raises(ConfigError, match="no name of a repository"):
        check_push("a/b/c")
    monkeypatch.setattr("medrm.hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("medrm.hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="Set HF_TOKEN"):
        check_push("user/reward-model")
    monkeypatch.setattr("medrm.hub.get_token", lambda: "hf_dummy")
    check_push("user/reward-model")


def test_only_an_adapter_folder_is_pushed(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"medrm\.json"):
        push(tmp_path, "user/reward-model")


PUSH = """
import json, sys
from pathlib import Path
from medrm.errors import MedrmError
from medrm.hub import push
try:
    print(push(Path("adapter"), "user/reward-model", private=True))
except MedrmError as error:
    sys.exit(f"refused: {error}")
import medrm
case = {"images": ["scan.png"], "question": "Which?", "answers": ["one", "two"]}
scores = [medrm.load(where).score(**case).tolist() for where in ("adapter", "user/reward-model")]
sys.exit(None if scores[0] == scores[1] else f"other scores: {scores}")
"""


@pytest.mark.slow
def test_a_pushed_folder_loads_back_with_the_same_scores(
    run_dir: Path, card: str, tmp_path: Path
) -> None:
    hub = LoopbackHub(token="hf_dummy")
    tiny_image().save(run_dir / "scan.png")
    (run_dir / "adapter" / "optimizer.pt").write_bytes(b"not published")
    (run_dir / "a base").symlink_to(run_dir.parent / "a base")
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE")
    environment.pop("HF_TOKEN", None)

    def pushed(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PUSH],
            cwd=run_dir,
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        refused = pushed()
        assert "refused: The hub refuses to write" in refused.stderr
        assert "HF_TOKEN" in refused.stderr
        done = pushed(HF_TOKEN="hf_dummy")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{hub.url}/user/reward-model/commit/")
    finally:
        hub.close()
        (run_dir / "adapter" / "optimizer.pt").unlink()
    files = hub.repos["user/reward-model"]
    assert {"README.md", "medrm.json", "adapter_config.json", "adapter_model.safetensors"} <= set(
        files
    )
    assert "optimizer.pt" not in files
    assert files["README.md"].decode() == card
    assert hub.private["user/reward-model"] in (True, "private")
    for name, data in files.items():
        assert str(run_dir.parent).encode() not in data, name
    assert json.loads(files["medrm.json"])["objective"] == "bradley_terry"
