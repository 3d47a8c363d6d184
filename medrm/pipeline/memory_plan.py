"""The memory of each device in a training and its evaluations, for the launch that is asked for.

The model is built with its head and its adapter on the meta device, the trainer is the run's own,
and a step and a batch of an evaluation are rehearsed (`models/memory_estimate.py`). What a launch
adds is counted here: who holds which share, and what is gathered or copied to send it.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BatchFeature, PreTrainedModel

from medrm.errors import FOREIGN_ERRORS, first_line
from medrm.models.base_model import empty_base, load_config
from medrm.models.footprint import QUANTISED_BYTES
from medrm.models.lora_targets import lora_targets
from medrm.models.memory_estimate import (
    Rehearsal,
    StepMemory,
    rehearse_forward,
    rehearse_step,
)
from medrm.models.prefix_sharing.attention import attention_of_gpus, shares_prefix
from medrm.models.reward_model import attach_head, without_adapter
from medrm.models.trainable import add_adapter, add_adapter_like
from medrm.objectives.step_preview import StepPreview
from medrm.pipeline.context import RunContext
from medrm.pipeline.launch_settings import LaunchSettings
from medrm.pipeline.stages import build_trainer, training_inputs
from medrm.readouts import JUDGE_READOUTS
from medrm.scorer.specs import prompt_of, saved_folder

CONTEXT_BYTES = 600 * 2**20
"""Of a GPU, that CUDA and its libraries take before any tensor: about as much on recent ones."""

_BUCKET = 500_000_000
"""Numbers of the buffer in which DeepSpeed sends gradients (`reduce_bucket_size`)."""

_LIVE = 1_000_000_000
"""Most weights that ZeRO-3 keeps gathered (`stage3_max_live_parameters`)."""

_STATES_OF_BITSANDBYTES = {"adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1}
"""Numbers that its optimisers keep for each weight."""


@dataclass(frozen=True)
class RehearsedRun:
    """What a run will hold on a single device, and what its steps are.

    Attributes:
        steps: of the training.
        training: at the peak of a step.
        forward: bytes of an evaluation's batch besides the weights.
        sampling: bytes of the answers that a training samples at once, besides weights and states.
        trained: module of the model to the parameters in it that learn, and all of it.
        learning: parameters that learn.
        largest_layers: bytes of the largest layer that is gathered by itself, and of what lies in
            none.
        problem: why nothing is known of activations; None: they were rehearsed.
        missing: what could not be imported, as the libraries say it.
    """

    steps: StepPreview
    training: StepMemory
    forward: int
    trained: Mapping[str, tuple[int, int]]
    learning: int
    largest_layers: tuple[int, int]
    problem: str | None = None
    missing: tuple[str, ...] = ()
    sampling: int = 0

    @property
    def activations(self) -> int:
        """Bytes of the training besides weights, gradients and states, at its peak.

        While a training samples it holds no gradients.
        """
        return max(self.training.activations, self.sampling - self.training.gradients)


def rehearse_run(context: RunContext, launch: LaunchSettings, *, on_cpu: bool) -> RehearsedRun:
    """Returns what a run will hold on one device that has everything, and what its steps are.

    Args:
        context: of the run, whose data and options are checked.
        launch: says how many processes cut a step up.
        on_cpu: whether it will run on CPUs.
    """
    arguments = copy.copy(context.run.training)
    arguments.report_to = []  # nobody is told of a rehearsal
    context = replace(context, run=replace(context.run, training=arguments))
    model, saved_bytes = _empty_trainable(context, on_cpu)
    rehearsal = Rehearsal()
    rehearsal.pretend(model)
    layers, trained = _layers(model), _trained(model)
    problem, missing, sampling = None, list[str](), 0
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    sizes = [sum(weight.nbytes for weight in weights) for weights in (learning, model.parameters())]
    # Of a step that cannot be rehearsed.
    training = StepMemory(sizes[1] - sizes[0], sizes[0], sizes[0], 2 * sizes[0], 0)
    forward = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        nullcontext() if on_cpu else attention_of_gpus(),
    ):
        try:
            forward = _rehearse_evaluation(context, rehearsal, model)
        except (*FOREIGN_ERRORS, ImportError) as error:
            problem = f"evaluation: {named_error(error)}"
            missing += [problem] * isinstance(error, ImportError)
        trainer: Any = build_trainer(context, model, Path(folder), "rehearsal")
        inputs = training_inputs(context, model, Path(folder))
        steps = context.objective.preview(inputs, trainer, launch.processes)
        offloads = not on_cpu and vars(context.run.training).get("activation_offloading")
        try:
            training = rehearse_step(
                rehearsal,
                model,
                partial(steps.run, steps.batch()),
                _optimiser(trainer),
                accumulates=steps.micro_batches > 1,
                offloads=bool(offloads),
            )
            if steps.sampling is not None:
                sampling = _rehearse_replies(rehearsal, model.eval(), *steps.sampling())
        except (*FOREIGN_ERRORS, ImportError) as error:
            problem = f"training: {named_error(error)}"
            missing += [problem] * isinstance(error, ImportError)
    training = replace(training, weights=training.weights - saved_bytes)
    count = sum(weight.numel() for weight in learning)
    told = (problem, tuple(missing), sampling)
    return RehearsedRun(steps, training, forward, trained, count, layers, *told)


def named_error(error: Exception) -> str:
    """Returns the class of an error and the first line of what it says."""
    return f"{type(error).__name__}: {first_line(error)}"


def device_memory(
    rehearsed: RehearsedRun, launch: LaunchSettings, *, on_cpu: bool
) -> dict[str, tuple[int, int]]:
    """Returns what each device holds, by part: in training, and in an evaluation.

    Args:
        rehearsed: of a device that has everything.
        launch: who shares what.
        on_cpu: whether the devices are CPUs.
    """
    memory, processes = rehearsed.training, launch.processes
    sharded = launch.kind == "FSDP2" or launch.zero_stage == 3
    held = {
        "frozen weights": memory.weights,
        "adapter and head": memory.trained,
        "gradients": memory.gradients,
        "optimiser states": memory.optimiser,
    }
    if launch.kind == "DeepSpeed":
        held["optimiser states"] += 4 * rehearsed.learning  # its own fp32 copy of the weights
    shares = dict.fromkeys(held, processes if sharded else 1)
    if launch.kind == "DeepSpeed":
        shares["optimiser states"] = processes
        shares["gradients"] = processes if launch.zero_stage >= 2 else 1
    training = {name: size // shares[name] for name, size in held.items()}
    if launch.weights_offloaded:
        training |= {"frozen weights": 0, "adapter and head": 0}
    if launch.optimiser_offloaded:
        training |= {"optimiser states": 0, "gradients": 0}
    training["activations"] = rehearsed.activations
    training["gathered or sent"] = _in_transit(rehearsed, launch)
    evaluation = {
        "frozen weights": memory.weights,
        "adapter and head": memory.trained,
        "activations": rehearsed.forward,
    }
    if not on_cpu:
        training[CONTEXT] = evaluation[CONTEXT] = CONTEXT_BYTES
    return {name: (size, evaluation.get(name, 0)) for name, size in training.items()}


CONTEXT = "CUDA and its libraries, about"


def _in_transit(rehearsed: RehearsedRun, launch: LaunchSettings) -> int:
    """Returns the bytes of what a device gathers from others, and of buffers to send gradients."""
    memory = rehearsed.training
    if launch.kind == "DDP":
        return memory.gradients  # its buckets
    if launch.kind == "FSDP2":
        layer, rest = rehearsed.largest_layers
        whole = memory.weights + memory.trained
        return min(whole, 2 * layer + rest) if launch.reshards else whole
    if launch.kind != "DeepSpeed":
        return 0
    gathered = 0
    if launch.zero_stage == 3:
        count = sum(total for _, total in rehearsed.trained.values())
        whole = memory.weights + memory.trained
        gathered = whole * min(_LIVE, count) // count
    return gathered + 4 * _BUCKET


def _empty_trainable(context: RunContext, on_cpu: bool) -> tuple[Any, int]:
    """Returns what a run trains, on the meta device, and the bytes that quantising it saves."""
    run, options, saved = context.run, context.run.model, 0
    model = empty_base(options, _precision(context, on_cpu)).requires_grad_(False)
    if options.load_in_4bit or options.load_in_8bit:
        saved = _quantise(model, "nf4" if options.load_in_4bit else "int8")
    if context.head_spec is not None:
        model = attach_head(model, context.head_spec, run.training.seed)
    start = run.judge.init_adapter
    with torch.device("meta"):
        if start is not None:
            return add_adapter_like(model, saved_folder(start)), saved
        return add_adapter(model, run.adapter, run.training.seed), saved


def _precision(context: RunContext, on_cpu: bool) -> torch.dtype:
    options = context.run.model
    if options.dtype != "auto":
        return torch.float32 if options.dtype == "float32" else torch.bfloat16
    where = (options.model_name_or_path, options.model_revision, options.trust_remote_code)
    dtype = None if on_cpu else load_config(*where).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _quantise(model: PreTrainedModel, kind: str) -> int:
    """Casts what stays unquantised as `wrap` does; returns the bytes that the rest then saves."""
    quantised = {f"{name}.weight" for name in lora_targets(model).decoder}
    saved = 0
    for name, parameter in model.named_parameters():
        if name in quantised:
            kept = parameter.numel() * QUANTISED_BYTES[kind]
            saved += int(parameter.numel() * parameter.element_size() - kept)
        else:
            parameter.data = parameter.data.float()
    return saved


def _trained(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns by module what learns in it and all of it: layers of a stack are counted together."""
    counts: dict[str, tuple[int, int]] = {}
    for name, weight in model.named_parameters():
        if ".original_module." in name:  # of a head whose copy PEFT trains
            continue
        path = [step for step in name.split(".") if step not in _WRAPPERS]
        stop = next((index for index, step in enumerate(path) if step.isdigit()), len(path) - 1)
        module = ".".join(path[:stop]) or path[0]
        learned, total = counts.get(module, (0, 0))
        size = weight.numel()
        counts[module] = (learned + size * weight.requires_grad, total + size)
    return counts


_WRAPPERS = ("base_model", "model", "modules_to_save", "default")
"""Steps of a path that PEFT adds, or that say nothing."""


def _layers(model: Any) -> tuple[int, int]:
    """Returns the bytes of the largest layer that FSDP gathers by itself, and of the rest."""
    base = without_adapter(model)
    names = set(getattr(base, "_no_split_modules", None) or ())
    sizes, inside = [0], set[int]()
    for module in base.modules():
        if type(module).__name__ in names:
            weights = list(module.parameters())
            sizes.append(sum(weight.nbytes for weight in weights))
            inside |= set(map(id, weights))
    rest = sum(weight.nbytes for weight in model.parameters() if id(weight) not in inside)
    return max(sizes), rest


def _rehearse_evaluation(context: RunContext, rehearsal: Rehearsal, model: Any) -> int:
    """Returns the bytes of the largest batch of an evaluation, besides the weights.

    A judge's keys and values are those of the prompts and of replies of full length.
    """
    base, evaluation = without_adapter(model), context.run.evaluation
    rows = 1 if evaluation.deterministic else evaluation.evaluation_batch_rows
    cases, spec = context.splits.benchmark.cases, context.judge_spec
    lengths = context.collator.tokens(cases, context.splits.facts)["longest"]
    answers = len(cases[int(lengths.argmax())].answers)
    order = np.argsort(-lengths, kind="stable")
    model.eval()
    if context.readout not in JUDGE_READOUTS or spec is None:
        chosen = [cases[int(index)] for index in order[: max(1, rows // answers)]]
        shares = shares_prefix(base) and not evaluation.deterministic
        batch = (context.collator.shared_rows if shares else context.collator.rows)(chosen)
        return rehearse_forward(rehearsal, _forward(model, batch))[0]
    chosen = [cases[int(index)] for index in order[:rows]]
    prompt = prompt_of(spec)
    dimensions = context.splits.dimensions
    dimensions = dimensions[:1] if prompt.per_dimension else dimensions
    prompts = [
        context.collator.row(
            prompt.messages(
                case.asked, len(case.images), (case.answers[0], case.answers[1]), dimensions
            ),
            case.images,
        )
        for case in chosen
    ]
    batch = context.collator.encode(prompts)
    return _rehearse_replies(rehearsal, base, batch, spec.max_new_tokens)


def _rehearse_replies(rehearsal: Rehearsal, model: Any, prompts: BatchFeature, tokens: int) -> int:
    """Returns the bytes of replies of so many tokens to encoded prompts, besides the weights."""
    settings = {"use_cache": True, "logits_to_keep": 1}
    peak, left = rehearse_forward(rehearsal, _forward(model, prompts, **settings))
    return max(peak, left + left * tokens // int(prompts["input_ids"].shape[1]))


def _forward(model: Any, batch: BatchFeature, **settings: Any) -> Callable[[], object]:
    return lambda: model(**batch, **settings)


def _optimiser(trainer: Any) -> Callable[[], torch.optim.Optimizer] | int:
    """Returns what makes the optimiser, or the bytes of its states for each number it learns."""
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if any(mark in name for mark in ("bnb", "8bit", "paged", "ademamix", "lion")):
        states = next((n for kind, n in _STATES_OF_BITSANDBYTES.items() if kind in name), 2)
        return states * (1 if "8bit" in name else 4)
    return trainer.create_optimizer  # type: ignore[no-any-return]
