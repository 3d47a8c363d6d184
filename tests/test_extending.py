"""One toy of everything that people add, through the door that medrm/README.md names, and run.

All but the benchmark come from outside the package: an entry in a registry, which is a dictionary.
A benchmark is a file of the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import save_tiny, tiny_image
from tiny_text import chatml, train_tokenizer
from torch import Tensor
from torch.nn.functional import relu
from transformers import Trainer

import medrm
from medrm.config.option import option
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.config.parse import Run, parse_run
from medrm.data.case_set import FORMATS, CaseSet
from medrm.data.row_tables import RowTable
from medrm.data.sources import CaseDraft, DataFormat, Description, ReadResult, Vote
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.evaluator import evaluate, rescore
from medrm.evaluation.pages.document import Section
from medrm.evaluation.pages.report_page import SECTIONS, PageContent, write_page
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import new_adapter_config
from medrm.models.base_model import load_base, load_config
from medrm.models.families import FAMILIES, family_of
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head, head_of
from medrm.models.trainable import add_adapter
from medrm.objectives import OBJECTIVES, argument_classes, load_objective
from medrm.objectives.losses import PAIR_LOSSES, PairLoss
from medrm.objectives.objective import BradleyTerryConfig, TrainingInputs
from medrm.readouts import READOUTS, Readout
from medrm.schema import Case, PairLabel, Response
from medrm.scorer.collator import Collator
from medrm.scorer.engines import ENGINES, EngineEntry
from medrm.scorer.engines.base import Completion, ModelSource, Request, Sampling
from medrm.scorer.open import open_scorer

ROOT = Path(__file__).resolve().parent.parent
DIMENSIONS = ("overall",)


def pair(number: int) -> Case:
    answers = ("Clear lungs.", "9999 9999") if number % 2 else ("9999 9999", "Clear lungs.")
    label = PairLabel((1.0, 0.0, 0.0) if number % 2 else (0.0, 0.0, 1.0))
    return Case(f"case-{number}", (), "What does the image show?", answers, {"overall": label})


def toy_run(folder: Path, *options: str) -> Run:
    """A run of one step on a CPU, as the command line gives it."""
    settings = {
        "model_name_or_path": str(save_tiny("qwen2_5_vl", folder / "base")),
        "train_data": "unread", "output_dir": str(folder), "dimensions": "overall",
        "max_steps": "1", "warmup_steps": "0", "global_batch_cases": "2",
        "per_device_train_batch_size": "2", "eval_strategy": "no", "save_strategy": "no",
        "load_best_model_at_end": "false", "report_to": "none", "use_cpu": "true",
    }  # fmt: skip
    arguments = [text for key, value in settings.items() for text in (f"--{key}", value)]
    recipe = ROOT / "recipes" / "quickstart" / "bradley_terry.yaml"
    return parse_run([*arguments, *options], argument_classes(), recipe)


def trained_by(run: Run) -> tuple[Trainer, Any]:
    """The trainer of a run after its step, and what the run saves, loaded anew."""
    objective, folder = load_objective(run.objective), Path(str(run.training.output_dir))
    cases = [pair(number) for number in range(4)]
    model, processor = load_base(run.model), load_processor(run.model.model_name_or_path)
    assert objective.head_spec is not None
    objective.check(run, DIMENSIONS, cases, cases)
    attach_head(model, objective.head_spec(run, DIMENSIONS, cases), seed=0)
    adapted = add_adapter(model, AdapterOptions(lora_r=4))
    collator = Collator(processor)
    counts = objective.lengths(run, collator, DIMENSIONS, cases, {})
    lengths: Any = {case.case_id: count for case, count in zip(cases, counts, strict=True)}
    trainer = objective.build_trainer(TrainingInputs(run, adapted, collator, cases, cases, lengths))
    before = head_of(adapted).layers[-1].weight.clone()
    trainer.train()
    assert trainer.state.global_step == 1
    assert not torch.equal(before, head_of(adapted).layers[-1].weight)
    config = new_adapter_config(
        adapted, processor, run.model, run.objective, objective.readout(run)
    )
    save_adapter(folder / "adapter", adapted, processor, config)
    return trainer, medrm.load(folder / "adapter")


def toy_checkpoint(folder: Path) -> Path:
    """A tiny model of a type that medrm has no word for: Aya Vision."""
    marks = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE_GLOBAL"]
    tokenizer = train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks],
        chatml("<image>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    text = {"model_type": "llama", "vocab_size": len(tokenizer), "bos_token_id": None}
    tower = {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
    config = transformers.AyaVisionConfig(
        text_config=sizes | text | {"pad_token_id": tokenizer.pad_token_id},
        vision_config=sizes | tower | {"vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        tie_word_embeddings=False,
    )
    images = transformers.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, min_patches=1, max_patches=1
    )
    loader: Any = transformers.AutoModelForImageTextToText
    loader.from_config(config).save_pretrained(folder)
    transformers.AyaVisionProcessor(
        images, tokenizer, 14, 28, downsample_factor=2, chat_template=tokenizer.chat_template
    ).save_pretrained(folder)
    return folder


def test_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads, becomes a reward model, is saved, loads again and scores, images included.

    Its parts are found; an entry from outside says what cannot be found.
    """
    base = toy_checkpoint(tmp_path / "base")
    options = ModelOptions(str(base))
    assert not family_of(load_config(str(base))).unsupported
    monkeypatch.setitem(FAMILIES, "aya_vision", {"unsupported": {"judge_grpo": "because"}})
    assert family_of(load_config(str(base))).unsupported == {"judge_grpo": "because"}
    model, processor = load_base(options), load_processor(str(base))
    adapted = add_adapter(
        attach_head(model, HeadSpec(DIMENSIONS), seed=0), AdapterOptions(lora_r=4)
    )
    config = new_adapter_config(adapted, processor, options, "bradley_terry", "reward")
    assert config.family == "aya_vision"
    save_adapter(tmp_path / "adapter", adapted, processor, config)
    saved: Any = medrm.load(tmp_path / "adapter")
    rewards, with_other_image = (
        saved.score([tiny_image(seed)], "What is it?", ["Clear lungs.", "A nodule."])
        for seed in (0, 1)
    )
    assert rewards.shape == (2, 1)
    assert np.isfinite(rewards).all()
    assert not np.allclose(rewards, with_other_image, atol=1e-7)  # the image reaches the head


@dataclass
class ToyConfig(BradleyTerryConfig):
    """The toy objective's arguments."""

    wanted_reward: float = option(1.0, "Reward of a preferred answer; the other's is 0.")


class ToyTrainer(Trainer):
    """Fits the rewards of good answers to a number."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        wanted = inputs.pop("good") * self.args.wanted_reward  # type: ignore[attr-defined]
        return (model(**inputs).rewards[:, 0] - wanted).square().mean()


def toy_trainer(inputs: TrainingInputs) -> Trainer:
    def collate(cases: Sequence[Case]) -> Any:
        texts = [answer for case in cases for answer in case.answers]
        good = torch.tensor([float(text.startswith("Clear")) for text in texts])
        return {**inputs.collator.rows(cases), "good": good}

    arguments = inputs.run.training
    arguments.remove_unused_columns = False
    return ToyTrainer(
        model=inputs.model,  # type: ignore[arg-type]
        args=arguments,
        train_dataset=list(inputs.train),  # type: ignore[arg-type]
        eval_dataset=list(inputs.development),  # type: ignore[arg-type]
        data_collator=collate,
    )


def test_an_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are parsed, its trainer takes a step, and what it saved loads and scores."""
    module = ModuleType("toy_objective")
    module.OBJECTIVE = replace(  # type: ignore[attr-defined]
        load_objective("bradley_terry"), config=ToyConfig, build_trainer=toy_trainer
    )
    monkeypatch.setitem(sys.modules, "toy_objective", module)
    monkeypatch.setitem(OBJECTIVES, "toy", "toy_objective")
    run = toy_run(tmp_path / "run", "--objective", "toy", "--wanted_reward", "0.5")
    trainer, saved = trained_by(run)
    assert isinstance(trainer, ToyTrainer)
    assert run.training.wanted_reward == 0.5
    assert saved.contract.objective == "toy"
    assert saved.score([], "What is it?", ["Clear lungs.", "9999"]).shape == (2, 1)


def hinge(difference: Tensor, shares: Tensor, margin: Tensor | None) -> Tensor:
    """Returns s_first max(0, 10 - d) + s_second max(0, 10 + d)."""
    return shares[..., 0] * relu(10 - difference) + shares[..., 2] * relu(10 + difference)


def test_a_pair_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a value of `ties`, and the trainer's loss is its."""
    monkeypatch.setitem(PAIR_LOSSES, "hinge", PairLoss(hinge))
    trainer, _ = trained_by(toy_run(tmp_path / "run", "--ties", "hinge"))
    # Rewards of a fresh head lie close together, where the hinge gives 10 and the logistic 0.7.
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(10, abs=1)


def toy_benchmark() -> Benchmark:
    """Four cases; the longer answer comes first and is right in every second one."""
    cases = [
        replace(pair(number), answers=("One word more.", "Yes."), cluster=str(number))
        for number in range(4)
    ]
    return Benchmark("toys", CaseSet("toys", "1", "d" * 64, cases, dimensions=DIMENSIONS))


class WordCount:
    """The toy readout: an answer's reward is how many words it has."""

    readout = "word_count"
    lookahead = None

    def __init__(
        self, model: Any, processor: Any, *, dimensions: Sequence[str], batch_rows: int
    ) -> None:
        self.dimensions = tuple(dimensions)
        self.settings = {"vocabulary": model.config.get_text_config().vocab_size}

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        for case in cases:
            counts = tuple(float(len(answer.split())) for answer in case.answers)
            rewards = dict.fromkeys(self.dimensions, counts)
            yield Response(
                case.case_id, "forward", None, 0, self.readout, "", None, None, None, "ok",
                rewards=rewards,
            )  # fmt: skip


def test_a_readout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_scorer` opens it, an evaluation records what it says, and scores it again."""
    module = ModuleType("toy_readout")
    module.WordCount = WordCount  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_readout", module)
    base = str(save_tiny("qwen2_5_vl", tmp_path / "base"))
    with pytest.raises(medrm.errors.ConfigError, match="readout 'word_count'"):
        open_scorer(base, "word_count", dimensions=DIMENSIONS)
    toy = Readout("word_count", "base", "rewards", "toy_readout:WordCount", official=False)
    monkeypatch.setitem(READOUTS, "word_count", toy)
    scorer = open_scorer(base, "word_count", dimensions=DIMENSIONS)
    assert isinstance(scorer, WordCount)
    report = evaluate(scorer, toy_benchmark(), tmp_path / "out", "a model")
    assert report["readout"] == "word_count"
    assert report["protocols"]["robust"]["dimensions"]["overall"]["accuracy"] == 0.5
    assert "official" not in report["protocols"] or not report["protocols"]["official"]["micro"]
    assert rescore(tmp_path / "out")["protocols"] == report["protocols"]


class ToyEngine:
    """The toy engine: writes that the first answer shown is better, whatever it is asked."""

    name = "toy"
    lookahead = None

    def __init__(self, model: str) -> None:
        self.settings = {"model": model}

    @classmethod
    def open(cls, source: ModelSource) -> ToyEngine:
        return cls(source.model)

    def plain(self, text: str) -> str:
        return text

    def complete(self, requests: Iterable[Request], _: Sampling) -> Iterator[Completion]:
        for request in requests:
            text = json.dumps(dict.fromkeys(request.dimensions, "A"))
            yield Completion(text, "stop", "ok", prompt_digest=request.digest)


def test_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_scorer` opens it, and its replies become verdicts."""
    module = ModuleType("toy_engine")
    module.ToyEngine = ToyEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_engine", module)
    toy = EngineEntry("toy", "toy_engine:ToyEngine", holds_weights=True)
    monkeypatch.setitem(ENGINES, "toy", toy)
    judge = open_scorer("a model", engine="toy")
    report = evaluate(judge, toy_benchmark(), tmp_path / "out", "a model")
    overall = report["protocols"]["robust"]["dimensions"]["overall"]
    assert (overall["accuracy"], overall["first_rate"], overall["coverage"]) == (0.5, 1.0, 1.0)
    assert (judge.settings["engine"], judge.settings["model"]) == ("toy", "a model")


def read_toy(table: RowTable, _: Path, __: Sequence[Description]) -> ReadResult | None:
    if set(table.columns) != {"number", "better", "worse"}:
        return None
    votes = {"overall": [Vote("author", 1)]}
    return ReadResult(
        CaseDraft(row["number"], (), "Which?", (row["worse"], row["better"]), votes)
        for _, row in table.rows
    )


def test_a_data_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of its columns is read into cases."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"number": "7", "better": "Yes.", "worse": "No."}) + "\n")
    monkeypatch.setitem(FORMATS, "toy", DataFormat(read_table=read_toy))
    (case,) = medrm.read_cases(path)
    assert (case.case_id, case.answers) == ("7", ("No.", "Yes."))
    label = case.labels["overall"]
    assert isinstance(label, PairLabel)
    assert label.choice == 1


def test_a_report_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the page and in its list of contents, escaped like everything else."""
    folder = shutil.copytree(ROOT / "tests" / "golden" / "evaluations" / "reward", tmp_path / "e")
    template = tmp_path / "toy.html.jinja"
    template.write_text("<p>{{ model }} met {{ word }}</p>")

    def context(page: PageContent) -> dict[str, str]:
        return {"model": page.run.after["model"], "word": "<toys>"}

    before = write_page(folder).read_text()
    monkeypatch.setitem(SECTIONS, "toy", Section("About toys", template, context))
    page = write_page(folder).read_text()
    model = json.loads((folder / "report.json").read_text())["model"]
    assert "About toys" not in before
    assert page.count("About toys") >= 2
    assert f"<p>{model} met &lt;toys&gt;</p>" in page
    assert 'href="#toy"' in page


def checkout(folder: Path) -> Path:
    """A checkout that holds what an evaluation reads."""
    kept_out = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in ("medrm", "data", "evaluation"):
        shutil.copytree(ROOT / name, folder / name, ignore=kept_out)
    return folder


@pytest.mark.slow
def test_a_benchmark(tmp_path: Path) -> None:
    """A YAML file and the description of its data set: `medrm evaluate` finds and measures it."""
    root = checkout(tmp_path / "checkout")
    (root / "evaluation" / "benchmarks" / "toy.yaml").write_text(
        "source: toys\ngroups: [subset]\nmetrics: [macro_group]\n"
    )
    (root / "data" / "toys").mkdir()
    (root / "data" / "toys" / "dataset.yaml").write_text(
        "name: toys\nform: pairs\nfiles: [rows.jsonl]\ndimension: overall\n"
        "columns: {id: id, question: asked, answers: replies, ranking: order}\n"
        "subsets: {even: '^even', odd: ''}\n"
    )
    rows = [
        {"id": f"{word}-{n}", "asked": "Which?", "replies": ["short", "longer"], "order": order}
        for n, (word, order) in enumerate([("even", [0, 1]), ("odd", [1, 0]), ("even", [1, 0])])
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", "mock:longer", "--benchmark", "toy", "--data_root", str(tmp_path)]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "medrm",
            "evaluate",
            *arguments,
            "--output_dir",
            str(tmp_path / "out"),
        ],
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["benchmark"]["name"] == "toy"
    assert report["benchmark"]["cases"] == 3
    robust = report["protocols"]["robust"]["dimensions"]["overall"]
    assert robust["accuracy"] == pytest.approx(2 / 3)
