"""A run folder with hand-made verdicts, from which a card is written and an adapter published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tiny import save_tiny

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.config.parse import parse_run
from medrm.data.case_set import CaseSet
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.report import write_json
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter
from medrm.objectives.objective import BradleyTerryConfig
from medrm.pipeline.manifest import manifest_of
from medrm.schema import Case, PairLabel, Response

HOSTILE = "org/set | <script>alert(1)</script> `x` [a](b)\n# heading"
REVISION = "5" * 40
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


def hand_made_benchmark(synthetic: bool, on_hub: bool) -> Benchmark:
    cases = hand_made_cases()
    source = CaseSet(
        name="hand-made",
        revision=REVISION if on_hub else "local",
        digest="d" * 64,
        cases=cases,
        dimensions=DIMENSIONS,
        ceiling={"accuracy": 0.96},
        synthetic=synthetic,
    )
    return Benchmark("med_rewardbench" if on_hub else "hand_made", source)


def write_run(
    folder: Path, name: str = HOSTILE, synthetic: bool = True, on_hub: bool = False
) -> Path:
    """Writes a run folder by medrm's own writers, with hand-made verdicts.

    Args:
        folder: where the run and its base model go.
        name: of the training data.
        synthetic: whether the benchmark says that its images are drawn.
        on_hub: whether the benchmark is one of the hub, as it is published there.
    """
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
        *(["--benchmark", "med_rewardbench"] if on_hub else []),
    ]
    recipe = folder / "recipe.yaml"
    recipe.write_text("use_cpu: true\nlora_r: 4\n")
    run = parse_run(
        ["--config", str(recipe), *arguments], {"bradley_terry": lambda: BradleyTerryConfig}, recipe
    )
    train = {"name": name, "revision": "local", "digest": "e" * 64, "cases": 123}
    write_json(run_dir / "run.json", manifest_of(run, {"train": train}, {}))
    benchmark = hand_made_benchmark(synthetic, on_hub)
    cases = benchmark.cases
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
