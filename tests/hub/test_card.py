"""The model card of a run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from published_run import REVISION, write_run
from tiny import tiny_image

from medrm.config.options import JudgeOptions
from medrm.errors import AdapterError, DataError
from medrm.hub.card import benchmark_entries, write_card
from medrm.models.adapter_config import update_adapter_config
from medrm.scorer.specs import judge_spec


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


def test_the_header_is_what_the_hub_reads(card: str, tmp_path: Path) -> None:
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "peft"
    assert header["pipeline_tag"] == "image-text-to-text"
    assert "license_link" not in header, "where it will be published is not known"
    assert "base_model" not in header  # a folder of the user's is no repository
    assert "base_model_relation" not in header
    assert {"medrm", "reward-model", "medical", "bradley-terry", "lora"} == set(header["tags"])
    assert "model-index" not in header, "a benchmark of the user's own is none of the hub"
    run = write_run(tmp_path, on_hub=True)
    update_adapter_config(
        run / "adapter", base_model="org/base", base_revision="1" * 40, base_digest=None
    )
    header = yaml.safe_load(write_card(run / "adapter", run).read_text().split("---")[1])
    assert header["base_model"] == "org/base"
    assert header["base_model_relation"] == "adapter"
    assert header["license_link"] == "https://huggingface.co/org/base"
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["type"] == "Nandzy/Med-RewardBench"
    assert result["dataset"]["revision"] == REVISION
    robust, official = result["metrics"]
    assert robust["type"] == official["type"] == "accuracy"
    assert robust["name"] == "robust accuracy (accuracy)"
    assert robust["value"] == pytest.approx(0.95)
    assert robust["args"]["n"] == 20
    assert official["name"] == "official accuracy (accuracy)"
    assert official["value"] == pytest.approx(0.95)


@pytest.mark.parametrize("change", [{"train_data": None}, {"benchmark": None}])
def test_a_part_of_a_benchmark_is_not_its_own_data(tmp_path: Path, change: dict[str, Any]) -> None:
    run = write_run(tmp_path, on_hub=True)
    assert benchmark_entries(run) is not None
    rewritten(run / "run.json", lambda record: record["config"].update(change))
    assert benchmark_entries(run) is None


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


def test_a_set_of_files_is_not_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, name="smith_family")
    card = write_card(run / "adapter", run).read_text(encoding="utf-8")
    assert "smith" not in card
    assert "| training data | data of its own, revision local" in card
    assert "percent on data of its own (20 cases" in card


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


def test_the_tag_of_a_base_without_images(copied: Path) -> None:
    adapter = copied / "adapter"

    def written() -> Any:
        text = write_card(adapter, copied).read_text(encoding="utf-8")
        return yaml.safe_load(text.split("---")[1])["pipeline_tag"]

    rewritten(adapter / "processor_config.json", lambda record: record.pop("image_processor"))
    assert written() == "text-classification"
    judge = {"judge": judge_spec(JudgeOptions()), "head": None, "readout": "generate"}
    update_adapter_config(adapter, **judge)
    assert written() == "text-generation"


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
