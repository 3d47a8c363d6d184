"""Judges trained on their own verdicts: TRL's `GRPOTrainer` with verifiable rewards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any, ClassVar, cast

import torch
from accelerate.utils import parse_flag_from_env, send_to_device
from torch.nn.functional import pad
from torch.utils.data import Sampler
from transformers import BatchFeature, ProcessorMixin
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, strip_images_from_messages

from medrm import chat, chat_template
from medrm.chat import JudgePrompt
from medrm.config.option import option
from medrm.config.parse import Run
from medrm.errors import ConfigError, applying, refuse
from medrm.models.base_model import load_config
from medrm.models.families import family_of
from medrm.models.processors import TextProcessor, image_inputs, load_processor, text_turns
from medrm.objectives.judge import judge_sft
from medrm.objectives.judge.judge_collator import prompt_messages
from medrm.objectives.judge.judge_examples import agreement, consistency, format
from medrm.objectives.judge.judge_trainer import WithReference
from medrm.objectives.objective import Fixed, TrainingInputs
from medrm.objectives.step_preview import StepPreview, preview_rows
from medrm.objectives.training_faults import NUMBERS
from medrm.objectives.whole_checkpoints import WholeCheckpoints
from medrm.schema import Case, ImageRef
from medrm.scorer.collator import Collator, Pixels, Row, decode_into, image_count


@dataclass
class JudgeGRPOConfig(judge_sft.JudgeArguments, GRPOConfig):  # type: ignore[misc] # TRL has no types
    """Arguments of `trl.GRPOConfig`. A step is counted in completions, as with TRL.

    The rewards, in the order of `reward_weights`: agreement with the labels, format, and, where the
    prompt asks for reasons, their consistency with the verdict. No checkpoint is chosen by the
    development split: to measure it, every row would have to be generated each time.
    """

    fixed: ClassVar[Fixed] = {
        **judge_sft.FIXED,
        "sync_ref_model": (False, "TRL cannot do it with an adapter"),
        "log_completions_hub_repo": (None, "nothing but the adapter is pushed"),
        "load_best_model_at_end": (False, "no loss of GRPO says which checkpoint is best"),
        "chat_template_kwargs": (None, "the template is used as in scoring"),
        "shuffle_dataset": (True, "every epoch is shuffled by the seed"),
    }

    learning_rate: float = option(1e-5, "Learning rate of the adapter.")
    max_completion_length: int | None = option(
        None, "Most tokens of a sampled verdict. None: max_new_tokens."
    )


class EpochSampler(Sampler[int]):
    """TRL's sampler, whose order follows from seed and epoch alone.

    TRL's own starts with the order of the first epoch wherever a training goes on.

    Args:
        sampler: of TRL.
        epoch: says which epoch begins when iteration starts.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.sampler, self.epoch = sampler, epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        generator = self.sampler.generator.manual_seed(self.sampler.seed)
        for _ in range(self.epoch()):  # the orders of the epochs before
            torch.randperm(self.sampler.num_samples, generator=generator)
        return iter(self.sampler)


class JudgeGRPOTrainer(WholeCheckpoints, WithReference, GRPOTrainer):  # type: ignore[misc] # TRL has no types
    """TRL's trainer, which sends and writes nothing else, and goes on where it was."""

    args: JudgeGRPOConfig
    data_collator: Any
    _buffered_inputs: Any

    def numbers_of(self, batch: Any) -> list[int]:
        """Returns the numbers of the prompts that a batch's completions answer."""
        return [row[NUMBERS] for row in batch]

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return EpochSampler(super()._get_train_sampler(dataset), lambda: int(self.state.epoch))

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return EpochSampler(super()._get_eval_sampler(eval_dataset), lambda: 0)

    def unlogged(self) -> dict[str, Any]:
        """Adds the completions that are still to be learned from, and those of the next table."""
        used = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        batches = [] if used else [_without_views(batch) for batch in self._buffered_inputs]
        names = _TABLE if self.log_completions else ()
        table = {name: [*map(strip_images_from_messages, self._logs[name])] for name in names}
        rewards = {name: [*column] for name, column in self._logs["rewards"].items()}
        micro_steps = {"micro_steps": self._step, "batches": batches}
        return {**super().unlogged(), **micro_steps, "table": table, "rewards": rewards}

    def restore_unlogged(self, of_processes: Sequence[Mapping[str, Any]]) -> None:
        """Takes back what `unlogged` gave.

        Raises:
            ConfigError: another number of processes would have to learn from the completions.
        """
        super().restore_unlogged(of_processes)
        saved, processes = of_processes[0], len(of_processes)
        if saved["batches"] and processes > 1:
            raise ConfigError(
                "The checkpoint lies between steps that learn from the same completions, which "
                f"are those of {processes} processes; go on with as many."
            )
        self._step = saved["micro_steps"]
        self._buffered_inputs = send_to_device(saved["batches"], self.args.device) or None
        for columns, known in ((self._logs, "table"), (self._logs["rewards"], "rewards")):
            for name, column in saved[known].items():
                columns[name].extend(column)


_TABLE = ("prompt", "completion", "advantages")
"""Columns of `log_completions`; images are in no table but other services'."""


def _without_views(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch whose tensors are no parts of larger ones, which would be saved whole."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def rewards_of(prompt: JudgePrompt) -> list[Any]:
    """Returns the reward functions for a prompt, in the order of `reward_weights`."""
    rewards = [agreement, format]
    return [*rewards, consistency] if prompt.rationale else rewards


_CARRIED = frozenset(signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
"""Inputs of a model that TRL passes on to it, by name."""

_ONE_IMAGE = frozenset({"batch_num_images"})
"""Inputs that say nothing where a prompt has one image; `Family.one_image_only` has the others."""


def _refuse_lost_inputs(run: Run, cases: Sequence[Case]) -> None:
    """Refuses a model some of whose inputs TRL would lose without a word.

    Raises:
        ConfigError: names them.
    """
    model = run.model
    where = (model.model_name_or_path, model.model_revision)
    if not any(image_count(case) for case in cases):
        return
    processor = load_processor(*where, trust_remote_code=model.trust_remote_code)
    lost = sorted(image_inputs(processor) - _CARRIED - _ONE_IMAGE)
    if lost:
        family = family_of(load_config(*where, model.trust_remote_code)).name
        raise ConfigError(
            f"The objective judge_grpo cannot be trained so: family {family}: TRL's GRPOTrainer "
            f"loses inputs of the model ({', '.join(lost)}); {judge_sft.ADVICE}."
        )


def check(
    run: Run, dimensions: Sequence[str], train: Sequence[Case], development: Sequence[Case]
) -> None:
    """Refuses what can be known to be wrong without a model; see `Objective.check`.

    Raises:
        ConfigError: options that do not fit each other or the cases.
        DataError: no case with a label to learn from.
    """
    names = [reward.__name__ for reward in rewards_of(judge_sft.judge_prompt(run))]
    weights = run.training.reward_weights or []
    checks = {
        "judge_grpo needs init_adapter, a judge adapter to start from: a base that never writes "
        "the JSON of a verdict earns no reward to learn from. Train one with judge_sft": (
            run.judge.init_adapter is None
        ),
        f"reward_weights holds {len(weights)} numbers; give {len(names)}, for {', '.join(names)}, "
        "or leave it out": run.training.reward_weights is not None and len(weights) != len(names),
        "judge_grpo was never run under FSDP, which parts the model that writes the replies; take "
        "accelerate_configs/ddp.yaml or zero3.yaml": parse_flag_from_env("ACCELERATE_USE_FSDP"),
    }
    refuse(applying(checks))
    _refuse_lost_inputs(run, [*train, *development])
    judge_sft.check_judge(run, dimensions, train, development)


def prompts(
    collator: Collator, examples: judge_sft.RunExamples, numbers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns what TRL's trainer generates from and what the rewards look at.

    An example stands there as often as it is answered; each distinct image is decoded once.

    Args:
        collator: of the run.
        examples: of the run.
        numbers: B rows of `numbered`.

    Raises:
        DataError: an image cannot be decoded.
    """
    pixels: Pixels = {}
    batch = []
    for number in numbers:
        example = examples[number["row"]]
        decode_into(pixels, example.case.images)
        messages = prompt_messages(collator, example, examples.prompt)
        turns = chat_template.fit_roles(collator.processor, messages)
        images = {"images": [pixels[ref.digest] for ref in example.case.images]}
        reads_text = isinstance(collator.processor, TextProcessor)
        batch.append(
            {
                "prompt": text_turns(turns) if reads_text else turns,
                **({} if reads_text else images),
                "dimensions": example.dimensions,
                "labels": {name: example.letters[name] for name in example.learned},
                "rationale": examples.prompt.rationale,
                NUMBERS: number["row"],
            }
        )
    return batch


def _left_padded(collator: Collator) -> ProcessorMixin:
    """Returns a processor whose rows have the tokens and the padding that TRL expects.

    TRL tokenises its prompts a second time to learn which tokens are an image (Gemma 3, Qwen-VL).
    Padding on the other side, or an opening token besides the one that the chat template writes,
    would move these places against the prompts without any error.
    """
    processor = copy.deepcopy(collator.processor)
    processor.tokenizer.padding_side = "left"
    opened = chat_template.render(processor, chat.answer_messages("?", 0, "."), "generation_prompt")
    if not collator.adds_special_tokens(opened):
        processor.tokenizer.backend_tokenizer.post_processor = None
    return processor


def build_trainer(inputs: TrainingInputs) -> JudgeGRPOTrainer:
    """Returns the trainer of `inputs.model`.

    Raises:
        ConfigError: the prompt is none.
    """
    examples, collator = judge_sft.run_examples(inputs), inputs.collator
    options = judge_sft.trainer_options(inputs, examples.train, examples.development)
    arguments: JudgeGRPOConfig = options["args"]
    if not arguments.max_completion_length:
        arguments.max_completion_length = inputs.run.judge.max_new_tokens
    arguments.chat_template_kwargs = chat_template.template_values(collator.processor)
    processor: Any = _left_padded(collator)
    # TRL asks the model of whatever is called a processor for its image token.
    is_text = isinstance(processor, TextProcessor)
    options["processing_class"] = processor.tokenizer if is_text else processor
    options["reward_funcs"] = rewards_of(examples.prompt)
    trainer: Any = JudgeGRPOTrainer(**options)
    # TRL's own takes examples as they are; this one makes them, in the data loader's workers.
    trainer.data_collator = partial(prompts, collator, examples)
    trainer.case_of = examples.case_id
    return cast(JudgeGRPOTrainer, trainer)


def preview(inputs: TrainingInputs, trainer: JudgeGRPOTrainer, processes: int) -> StepPreview:
    """Returns what the steps will be, sampling apart; see `Objective.preview`.

    Completions have their full length, and their prompts are the longest.
    """
    args: Any = trainer.args
    steps = preview_rows(
        trainer,
        judge_sft.example_tokens(inputs),
        processes,
        unit="completions",
        repeats=args.num_generations * args.num_iterations,
    )
    make_batch, model = steps.batch, trainer.accelerator.prepare_model(trainer.model)

    def batch() -> dict[str, Any]:
        return _loss_inputs(trainer, inputs.collator, make_batch())

    def run(sampled: dict[str, Any]) -> None:
        with trainer.compute_loss_context_manager():
            loss = trainer._compute_loss(model.train(), sampled)
        trainer.accelerator.backward(loss)

    def sampling() -> tuple[BatchFeature, int]:
        examples = make_batch() * args.steps_per_generation
        return _prompt_features(inputs.collator, examples), int(args.max_completion_length)

    return replace(steps, batch=batch, run=run, sampling=sampling)


def _prompt_features(collator: Collator, examples: list[dict[str, Any]]) -> BatchFeature:
    """Returns the encoded prompts of examples."""
    pixels: Pixels = {}
    rows = []
    for number, example in enumerate(examples):
        refs: list[ImageRef] = []
        for image in example.get("images", []):
            refs.append(ImageRef(str(number), f"{number}/{len(refs)}", bytes))
            pixels[refs[-1].digest] = image
        text = chat_template.render(collator.processor, example["prompt"], "generation_prompt")
        rows.append(Row(text, tuple(refs)))
    return collator.encode(rows, pixels)


def _loss_inputs(
    trainer: Any, collator: Collator, examples: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns what TRL's loss reads of completions that nobody has sampled yet."""
    features = _prompt_features(collator, examples)
    count, length = len(examples), int(trainer.args.max_completion_length or 0)
    prompt_ids, prompt_mask = features.pop("input_ids"), features.pop("attention_mask")
    for name, tensor in features.items():
        if tensor.shape[:2] == prompt_ids.shape:  # which tokens are an image
            features[name] = pad(tensor, (0, length))
    return {
        **features,
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": prompt_ids.new_zeros(count, length),
        "completion_mask": prompt_ids.new_ones(count, length),
        "advantages": torch.zeros(count),
        "ref_per_token_logps": torch.zeros(count, length),
        "num_items_in_batch": torch.tensor(count * length),
        "num_images": [len(example.get("images", [])) for example in examples],
    }


OBJECTIVE = replace(
    judge_sft.OBJECTIVE,
    config=JudgeGRPOConfig,
    check=check,
    build_trainer=build_trainer,
    preview=preview,
)
