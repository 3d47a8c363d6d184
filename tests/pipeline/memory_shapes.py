"""Measures the memory of short trainings and compares it with what a dry run estimates.

    PYTHONPATH=tests python -m pipeline.memory_shapes

prints the table that stands in accelerate_configs/README.md. On a CPU the measured peak is that of
torch's allocator, every block of every operator counted, as the profiler records it; on a GPU that
of `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rich.console import Console
from tiny import make_tiny
from torch.profiler import ProfilerActivity, profile

from medrm.config.parse import parse_run
from medrm.data.phantom.phantom_set import write_phantom
from medrm.evaluation.tables.table import table_of, to_terminal
from medrm.files import asset
from medrm.models.adapter import save_adapter
from medrm.objectives import argument_classes
from medrm.pipeline.context import RunContext
from medrm.pipeline.launch_settings import LaunchSettings
from medrm.pipeline.memory_plan import rehearse_run
from medrm.pipeline.prepare_data import prepare_data
from medrm.pipeline.stages import build_trainer, trained_config


class Shape(NamedTuple):
    """A model that is small, but not so small that fixed costs hide the rest."""

    family: str
    hidden: int
    layers: int
    vocabulary: int


QWEN = Shape("qwen2_5_vl", 256, 4, 4000)
WIDE = Shape("qwen2_5_vl", 512, 3, 20_000)
LLAVA = Shape("llava_onevision", 256, 4, 4000)
INTERN = Shape("internvl", 256, 4, 8000)

JUDGE = {"objective": "judge_sft", "per_device_train_batch_size": 4, "max_new_tokens": 16}

GRPO = {**JUDGE, "objective": "judge_grpo", "num_generations": 4, "max_steps": 2}

MEASURED: tuple[tuple[str, Shape, dict[str, Any]], ...] = (
    ("LoRA", QWEN, {}),
    ("LoRA, wide", WIDE, {}),
    ("LoRA of rank 64", QWEN, {"lora_r": 64}),
    ("all in fp32", QWEN, {"bf16": False}),
    ("weights in bf16", WIDE, {"dtype": "bfloat16"}),
    ("gradient checkpointing", QWEN, {"gradient_checkpointing": True}),
    ("checkpointing, wide", WIDE, {"gradient_checkpointing": True}),
    ("separate rows", QWEN, {"shared_prefix": "off"}),
    ("token budget 600", QWEN, {"max_tokens_per_batch": 600}),
    ("vision tower adapted", QWEN, {"lora_vision": True}),
    ("all weights", QWEN, {"use_peft": False}),
    ("all weights, SGD", WIDE, {"use_peft": False, "optim": "sgd"}),
    ("LLaVA-OneVision", LLAVA, {}),
    ("InternVL3", INTERN, {}),
    ("judge_sft", QWEN, JUDGE),
    ("judge_sft, wide, checkpointing", WIDE, {**JUDGE, "gradient_checkpointing": True}),
    ("judge_dpo", QWEN, {**JUDGE, "objective": "judge_dpo"}),
    ("judge_grpo", QWEN, GRPO),
    ("judge_grpo, 32 answers at once", QWEN, {**GRPO, "steps_per_generation": 8}),
)
"""What is trained: a name, the model, and options."""


def save_shape(shape: Shape, folder: Path) -> Path:
    """Writes a random model of a shape with its processor."""
    model, processor = make_tiny(shape.family, hidden=shape.hidden)
    text: Any = model.config.get_text_config()
    text.num_hidden_layers, text.vocab_size = shape.layers, shape.vocabulary
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[0]] * shape.layers
    transformers.AutoModelForImageTextToText.from_config(model.config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


EVALUATED: tuple[tuple[str, Shape, dict[str, Any]], ...] = (
    ("rewards", QWEN, {}),
    ("rewards, wide", WIDE, {}),
    ("rewards, 8 rows at once", WIDE, {"evaluation_batch_rows": 8}),
    ("rewards, separate rows", QWEN, {"shared_prefix": "off"}),
    ("rewards, LLaVA-OneVision", LLAVA, {}),
    ("rewards, InternVL3", INTERN, {}),
    ("replies of a judge", QWEN, JUDGE),
    ("replies of a judge, wide", WIDE, JUDGE),
)
"""What is evaluated: a name, the model, and options."""


def save_start(base: Path, data: Path, on_cpu: bool) -> Path:
    """Writes a judge of the base that has learned nothing, as GRPO starts from one."""
    folder = base.parent / "start" / "adapter"
    context = context_of(base, data, JUDGE, on_cpu)
    model = context.trainable()
    save_adapter(folder, model, context.processor, trained_config(context, model))
    return folder


def context_of(base: Path, data: Path, options: dict[str, Any], on_cpu: bool) -> RunContext:
    """Returns the run of a few steps."""
    if options.get("objective") == "judge_grpo":
        options = {**options, "init_adapter": save_start(base, data, on_cpu)}
    given = {
        "model_name_or_path": base,
        "train_data": data,
        "output_dir": base.parent / "run",
        "num_train_epochs": 1,
        "warmup_steps": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "use_cpu": on_cpu,
        **({} if "objective" in options else {"global_batch_cases": 8}),
        **options,
    }
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    run = parse_run(words, argument_classes(), asset("recipes/quickstart/bradley_terry.yaml"))
    return RunContext.prepare(run, prepare_data(run), base.parent / "run")


def evaluation_peaks(
    base: Path, data: Path, options: dict[str, Any], device: str = "cpu"
) -> tuple[int, int]:
    """Returns the estimated and the measured peak of an evaluation of what is trained, in bytes."""
    on_cpu = device == "cpu"
    context = context_of(base, data, options, on_cpu)
    rehearsed = rehearse_run(context, LaunchSettings(), on_cpu=on_cpu)
    held = rehearsed.training.weights + rehearsed.training.trained
    model = context.trainable()
    scorer = context.scorer(context.in_memory(model))
    return held + rehearsed.forward, _measured(
        model, lambda: list(scorer.respond(context.splits.benchmark.cases)), on_cpu
    )


def _measured(model: Any, work: Callable[[], Any], on_cpu: bool) -> int:
    """Returns the most bytes that lay on a device, those of a model there included."""
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    gc.collect()  # what an earlier training left would be freed meanwhile
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    return weights + _most_allocated(profiler)


def peaks(base: Path, data: Path, options: dict[str, Any], device: str = "cpu") -> tuple[int, int]:
    """Returns the estimated and the measured peak of a training of a few steps, in bytes."""
    on_cpu = device == "cpu"
    context = context_of(base, data, options, on_cpu)
    rehearsed = rehearse_run(context, LaunchSettings(), on_cpu=on_cpu)
    step = rehearsed.training
    estimate = step.total - step.activations + rehearsed.activations
    with tempfile.TemporaryDirectory() as folder:
        model = context.trainable()
        trainer = build_trainer(context, model, Path(folder), "measured")
        return estimate, _measured(model, trainer.train, on_cpu)


def _most_allocated(profiler: Any) -> int:
    """Returns the most bytes that torch's CPU allocator had given out at once."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        most = max(most, allocated)
    return most


def main() -> None:
    """Prints the estimated and the measured peaks and how far they are apart."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom(folder / "data", cases=40, seed=3)
        for what, measured, measure in (
            ("training step", MEASURED, peaks),
            ("evaluation", EVALUATED, evaluation_peaks),
        ):
            rows = []
            for title, shape, options in measured:
                base = folder / "-".join(map(str, shape))
                if not base.is_dir():
                    save_shape(shape, base)
                estimate, peak = measure(base, folder / "data", options, device)
                rows.append(
                    {
                        what: title,
                        "estimate, MiB": f"{estimate / 2**20:.1f}",
                        "measured, MiB": f"{peak / 2**20:.1f}",
                        "error": f"{100 * (estimate / peak - 1):+.1f} %",
                    }
                )
            Console().print(to_terminal(table_of(f"Peak of a {what} ({device})", rows)))


if __name__ == "__main__":
    main()
