"""`medrm check MODEL`: what medrm makes of a model, before anything is trained or scored with it.

Each section looks at one side of the model. What the weights alone can show is proven where they
are there (`scorer/self_check.py`), and named as not proven where they are not.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from PIL import Image

from medrm import chat
from medrm.chat_template import depends_on_date
from medrm.config.options import AdapterOptions, JudgeOptions
from medrm.errors import (
    FOREIGN_ERRORS,
    ConfigError,
    MedrmError,
    first_line,
    printable,
    report,
)
from medrm.models.adapter import load_adapter
from medrm.models.adapter_config import template_digest
from medrm.models.base_model import default_device, load_base
from medrm.models.base_reference import reference_of
from medrm.models.families import family_of
from medrm.models.footprint import Footprint, amount, footprint_of, size_text
from medrm.pipeline.checked_model import ANSWERS, CheckedModel
from medrm.pipeline.requests import CheckRequest
from medrm.readouts import BASE_READOUTS, READOUTS
from medrm.schema import DIMENSIONS
from medrm.scorer.collator import Collator
from medrm.scorer.proof_cache import check_loaded, proven_weights
from medrm.scorer.specs import plan_readout, prompt_of

_SIZES = ((224, 224), (512, 512), (1024, 1024), (2048, 2500))
"""(width, height) of typical images, in pixels."""

_ONLY_WEIGHTS_SHOW = (
    "that images reach the hidden states, that the reward depends on the answer's last word, that "
    "padding and other rows of a batch change nothing, and that shared prefixes are exact"
)


class Findings(NamedTuple):
    """What was found of one side of a model: for programs, and as lines for people."""

    name: str
    record: dict[str, Any]
    lines: list[str]


def check_model(request: CheckRequest) -> None:
    """Prints what medrm makes of a model.

    Raises:
        MedrmError: it will not work; says why, after all that could be found out.
    """
    subject = CheckedModel.find(request)
    footprint = footprint_of(subject.config, AdapterOptions())
    sections, problems = [_model(subject, footprint), _memory(footprint)], list[str]()
    looks: list[Callable[[CheckedModel], Findings]] = [_prompt, _template, _control_words, _images]
    looks.append(partial(_proof, footprint))
    for look in looks:
        try:
            sections.append(look(subject))
        except MedrmError as error:
            problems.append(str(error))
        except (*FOREIGN_ERRORS, TemplateError) as error:
            problems.append(f"{type(error).__name__}: {first_line(error)}")
        if problems and look is _prompt:  # the others would say the same
            break
    if request.json:
        record: dict[str, Any] = {section.name: section.record for section in sections}
        record["problems"] = problems
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    else:
        for section in sections:
            title = section.name.replace("_", " ").capitalize()
            sys.stdout.write(printable("\n".join([title, *section.lines, "\n"])))
    if problems:
        raise ConfigError(report(f"{request.model} will not work as it is.", problems))


def _model(subject: CheckedModel, footprint: Footprint) -> Findings:
    family, contract = family_of(subject.config), subject.contract
    lines = [
        f"  {family.name} ({footprint.model_class}), {amount(footprint.parameters)} parameters",
        *(
            f"  {part.role}: {part.module or 'the whole model'} ({part.class_name}, "
            f"{amount(part.parameters)})"
            for part in footprint.parts
        ),
        f"  LoRA (rank {AdapterOptions.lora_r}) adapts {footprint.lora_layers} linear layers of "
        f"the decoder: {amount(footprint.lora_parameters)} parameters; a linear head for one "
        f"dimension has {amount(footprint.head_parameters)}",
    ]
    if footprint.vision_layers:
        lines.append(
            f"  lora_vision adds {footprint.vision_layers} of the vision tower: "
            f"{amount(footprint.vision_parameters)}"
        )
    if footprint.routers or footprint.packed_experts:
        lines.append(
            f"  left alone: {footprint.routers} layers that choose experts (lora_routers adapts "
            f"them), {footprint.packed_experts} modules whose experts are one parameter"
        )
    if contract is not None:
        lines.append(
            f"  saved model: {contract.objective}, read by {contract.readout}, trained "
            f"{contract.trained} on {contract.base.name}, dimensions "
            f"{', '.join(contract.dimensions)}"
        )
    record = {"family": family.name, **asdict(footprint)}
    return Findings("model", record, lines)


def _memory(footprint: Footprint) -> Findings:
    lines = [
        f"  weights in {name}: {size_text(size)}" for name, size in footprint.weight_bytes.items()
    ]
    lines.append(
        f"  training adds {size_text(footprint.training_bytes)} for adapters, head, gradients and "
        "AdamW, and the activations of a batch"
    )
    record: dict[str, Any] = {
        "weight_bytes": footprint.weight_bytes,
        "training_bytes": footprint.training_bytes,
        "missing_packages": [],
    }
    if importlib.util.find_spec("bitsandbytes") is None:
        record["missing_packages"] = ["bitsandbytes"]
        lines.append("  int8 and nf4 need bitsandbytes, which is not installed")
    return Findings("memory", record, lines)


def _prompt(subject: CheckedModel) -> Findings:
    """Renders a synthetic case as the readout shows it to the model."""
    template_digest(subject.processor.chat_template)  # says so where there is no template
    readout, judge = subject.request.readout or "reward", None
    if subject.contract is not None or readout != "reward":
        plan = plan_readout(
            subject.contract, subject.request.readout, dimensions=DIMENSIONS, judge=JudgeOptions()
        )
        readout, judge = plan.readout, plan.judge
    case = subject.case(*[_SIZES[0]] * subject.takes_images)
    if READOUTS[readout].writes == "rewards":
        collator = (
            subject.collator if readout == "reward" else Collator(subject.processor, "turn_end")
        )
        text = collator.answer_rows(case)[0].text
    else:
        collator = Collator(subject.processor, "generation_prompt")
        prompt = (
            chat.LETTER_PROMPT if judge is None or readout in BASE_READOUTS else prompt_of(judge)
        )
        dimensions = DIMENSIONS[:1] if prompt.per_dimension else DIMENSIONS
        messages = prompt.messages(case.question, len(case.images), ANSWERS, dimensions)
        text = collator.row(messages, case.images).text
    ids = collator.token_ids([text])[0]
    last = str(collator.processor.tokenizer.decode(ids[-1:]))
    role = "the reward is read at" if readout == "reward" else "the text ends in"
    marked = text.removesuffix(last) + f"⟦{repr(last)[1:-1]}⟧" if text.endswith(last) else text
    lines = [f"  readout {readout}; {role} its last token, marked ⟦ ⟧:"]
    lines += [f"  | {line}" for line in marked.split("\n")]
    record = {"readout": readout, "text": text, "last_token": last, "tokens": len(ids)}
    return Findings("prompt", record, lines)


def _template(subject: CheckedModel) -> Findings:
    digest = template_digest(subject.processor.chat_template)
    templates = f"{subject.processor.chat_template} {subject.processor.tokenizer.chat_template}"
    asks_for_date = any(word in templates for word in ("strftime_now", "date_string"))
    dated = depends_on_date(subject.processor)
    says = "does not depend on the date"
    if asks_for_date:
        says = "asks for the date, which medrm fixes"
    if dated:
        says = "writes today's date into every prompt, so that scores change from day to day"
    lines = [f"  chat template sha256 {digest[:16]}; it {says}"]
    record = {"digest": digest, "asks_for_date": asks_for_date, "depends_on_date": dated}
    return Findings("template", record, lines)


def _control_words(subject: CheckedModel) -> Findings:
    """Tells what happens to tokens of the tokenizer that data may spell."""
    tokenizer, plain = subject.processor.tokenizer, subject.collator.plain_text
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    literal = [
        word
        for word, number in added.items()
        if number in tokenizer(plain(word), add_special_tokens=False)["input_ids"]
    ]
    broken = sorted(set(added) - set(literal), key=len)
    lines = [f"  {len(broken)} tokens that data may spell are broken up"]
    if broken:
        lines[0] += f", such as {broken[0]!r} to {plain(broken[0])!r}"
    if literal:
        names = ", ".join(map(repr, sorted(literal)[:6])) + (", ..." if len(literal) > 6 else "")
        lines.append(f"  {len(literal)} that are no control tokens are read as they are: {names}")
    return Findings("control_words", {"broken_up": broken, "kept": sorted(literal)}, lines)


def _images(subject: CheckedModel) -> Findings:
    if not subject.takes_images:
        return Findings("images", {"sizes": []}, ["  the model reads text alone"])
    contract, text_config = subject.contract, subject.config.get_text_config()
    limit = subject.request.max_length or (contract.max_length if contract else None)
    limit = limit or int(getattr(text_config, "max_position_embeddings", 0)) or None
    record, lines = [], []
    for size in _SIZES:
        case = subject.case(size)
        row = subject.collator.answer_rows(case)[0]
        pixels = {case.images[0].digest: Image.new("RGB", size)}
        started = time.perf_counter()
        tokens = subject.collator.encode([row], pixels)["input_ids"].shape[1]
        milliseconds = 1000 * (time.perf_counter() - started)
        text_length = len(subject.collator.token_ids([row.text])[0]) - 1  # all but the placeholder
        image_tokens = tokens - text_length
        fits = limit is None or tokens <= limit
        record.append(
            {
                "size": size,
                "tokens": image_tokens,
                "milliseconds": round(milliseconds, 1),
                "fits": fits,
            }
        )
        lines.append(
            f"  {size[0]} x {size[1]}: {image_tokens} tokens, {milliseconds:.0f} ms to prepare"
            + ("" if fits else f"; with {text_length} of text too many for {limit}")
        )
    lines.append(f"  a row may have {limit} tokens" if limit else "  no limit is stated")
    if not record[0]["fits"]:
        raise ConfigError(
            f"An image of {lines[0].strip()}. Raise max_length, or give max_pixels where the model "
            "takes it."
        )
    return Findings("images", {"sizes": record, "max_length": limit}, lines)


def _proof(footprint: Footprint, subject: CheckedModel) -> Findings:
    """Loads the model where it is and fits, and proves it."""
    device = default_device()
    free, needed = _free_bytes(device), footprint.weight_bytes[_precision(subject, device)]
    lacking = None
    if not subject.has_weights:
        lacking = "the weights are not here"
    elif free is not None and needed > free:
        lacking = (
            f"the weights take {size_text(needed)} and {size_text(free)} are free on {device}; "
            "with --dtype bfloat16 they take half of float32"
        )
    if lacking is not None:
        lines = [f"  not proven, {lacking}:", f"  {_ONLY_WEIGHTS_SHOW}"]
        return Findings("self_check", {"proven": False, "reason": lacking}, lines)
    started = time.perf_counter()
    if subject.folder is None:
        model: Any = load_base(subject.options, device)
        weights = reference_of(subject.options).identity
    else:
        dtype = subject.request.dtype
        model, _, _ = load_adapter(
            subject.folder,
            device,
            None if dtype == "auto" else getattr(torch, dtype),
            base=subject.request.base,
        )
        weights = proven_weights(subject.folder)
    loaded = time.perf_counter()
    proof = check_loaded(
        model,
        subject.processor,
        weights,
        subject.template,
        images=subject.takes_images,
        tell=False,
    )
    seconds = time.perf_counter() - loaded
    record = {"proven": True, **asdict(proof), "seconds": round(seconds, 2)}
    lines = [f"  {line}" for line in proof.lines]
    lines.append(f"  loaded in {loaded - started:.1f} s, proven in {seconds:.1f} s")
    return Findings("self_check", record, lines)


def _free_bytes(device: str) -> int | None:
    """Returns the memory that is free on a device, None where that is not known."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    return 1024 * int(text.split("MemAvailable:")[1].split()[0])


def _precision(subject: CheckedModel, device: str) -> str:
    """Returns the precision in which the model is loaded."""
    contract, dtype = subject.contract, subject.request.dtype
    if contract is not None:
        saved = contract.dtype if dtype == "auto" else dtype
        # float16 takes as many bytes as bfloat16.
        return contract.quantisation or ("float32" if saved == "float32" else "bfloat16")
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else "bfloat16"
