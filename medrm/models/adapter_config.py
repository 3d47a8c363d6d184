"""`medrm.json` of a saved model: what it needs, beside its weights, to give the same scores again.

It names the base model by name, commit and digest; `find_base.py` finds it again. `adapter.py` has
the folder around it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.chat_template import RewardTemplate
from medrm.config.options import ModelOptions
from medrm.errors import AdapterError, ConfigError, applying, report
from medrm.files import write_atomically
from medrm.integrity import changing
from medrm.models.adapter_files import LARGEST, MEDRM_FILE
from medrm.models.base_reference import BaseReference, proven_reference_of
from medrm.models.contract_fields import from_json
from medrm.models.families import family_of
from medrm.models.reward_model import HEAD, HeadSpec, has_head, head_of
from medrm.models.strict_json import read_object
from medrm.models.training_images import TrainingImages
from medrm.readouts import SAVED_READOUTS
from medrm.version import __version__

_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """How a judge was trained to be asked, and how it is read; stored in `medrm.json`.

    Attributes:
        prompt: name of the prompt.
        prompt_version: counted up when its words change; 0: a file of the user's.
        system: text of the system turn; empty: none.
        user: text of the user's turn, with placeholders.
        per_dimension: whether each dimension is asked for in a call of its own.
        rationale: whether reasons are written before the verdict.
        votes: samples of each call.
        temperature: of generated verdicts; 0: greedy.
        max_new_tokens: most tokens of a generated verdict.
    """

    prompt: str
    prompt_version: int = field(metadata={"range": (0, 10**6)})
    system: str
    user: str
    per_dimension: bool
    rationale: bool
    votes: int = field(metadata={"range": (1, 1000)})
    temperature: float = field(metadata={"range": (0, 100)})
    max_new_tokens: int = field(metadata={"range": (1, 10**6)})


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What is stored beside the weights; every field is needed to give the same scores again.

    Attributes:
        base_model: phantom-base, a hub id, or a local folder's name.
        base_revision: the hub commit; None for a folder.
        base_digest: SHA-256 of its weights; None of a hub id in what versions before 0.3 saved.
        family: name of the family.
        objective: what trained it.
        readout: how it is scored: "reward" by its head, "implicit_reward" by the adapter's change
            of an answer's likelihood, else by the verdict it writes.
        trained: "lora", "full" (all weights lie in the folder) or "head" (the head alone).
        dimensions: the names of the D dimensions, in the order of the outputs.
        head: shape of the head; None without one.
        judge: how a judge is asked; None for a reward model.
        implicit_beta: beta of an implicit reward (DPO), else None.
        reward_template: what follows the answer before the score is read.
        contextual_orders: in how many orders answers that see each other are read; 0: none does.
        chat_template_digest: SHA-256 of the processor's chat template.
        dtype: precision of the base's weights.
        quantisation: "nf4", "int8" or None.
        attn_implementation: attention of transformers.
        pooling: which position the head reads.
        min_pixels: fewest pixels of an image, None: the processor's own.
        max_pixels: most pixels of an image, None: the processor's own.
        max_length: most tokens of a row, None: no limit.
        score_statistics: dimension to mean and std of the scores on the development cases, and to
            the temperature at which their differences fit the labels of pairs, where there are any.
        image_conversion: by which medical images of its training became pictures; None, and absent
            from the file: there were none.
        training_data_digest: of the set it was trained on.
        training_images: how many images it was trained on, and the digest of the file that tells
            which; None: an earlier version wrote it.
        training_pixel_digests: what such a version wrote: SHA-256 of the decoded pixels of each.
        versions: library to version.
    """

    base_model: str
    base_revision: str | None
    base_digest: str | None
    family: str
    objective: str
    readout: str = field(metadata={"choices": SAVED_READOUTS})
    trained: Literal["lora", "full", "head"]
    dimensions: tuple[str, ...]
    head: HeadSpec | None
    reward_template: RewardTemplate
    chat_template_digest: str
    dtype: Literal["float32", "bfloat16", "float16"]
    attn_implementation: str
    judge: JudgeSpec | None = None
    implicit_beta: float | None = field(default=None, metadata={"range": (1e-9, 1e9)})
    contextual_orders: int = field(default=0, metadata={"range": (0, 1000)})
    quantisation: Literal["nf4", "int8"] | None = None
    pooling: Literal["last_attended"] = "last_attended"
    min_pixels: int | None = field(default=None, metadata={"range": (1, 10**9)})
    max_pixels: int | None = field(default=None, metadata={"range": (1, 10**9)})
    max_length: int | None = field(default=None, metadata={"range": (1, 10**8)})
    score_statistics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    image_conversion: str | None = None
    training_data_digest: str | None = None
    training_images: TrainingImages | None = None
    training_pixel_digests: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> BaseReference:
        """Which base model it was trained on."""
        return BaseReference(self.base_model, self.base_revision, self.base_digest)


def template_digest(template: Any) -> str:
    """Returns the SHA-256 of a processor's chat template.

    Raises:
        ConfigError: there is none.
    """
    if not template:
        raise ConfigError(
            "The processor has no chat template, so a conversation cannot be rendered. Give an "
            "instruction-tuned checkpoint, or add its chat_template.jinja to the model folder."
        )
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()


def new_adapter_config(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    options: ModelOptions,
    objective: str,
    readout: str,
    dimensions: Sequence[str] | None = None,
) -> AdapterConfig:
    """Returns the config of a trained model; `dataclasses.replace` adds what is particular.

    Args:
        model: as trained.
        processor: of the model.
        options: how the base was loaded.
        objective: what trained it.
        readout: how it is scored.
        dimensions: what it judges; None: what its head scores.
    """
    base = proven_reference_of(options)
    head = head_of(model).spec if has_head(model) else None
    trained: Literal["lora", "full", "head"] = "head"
    if isinstance(model, PeftModel):
        trained = "lora"
    elif any(p.requires_grad for n, p in model.named_parameters() if not n.startswith(f"{HEAD}.")):
        trained = "full"
    return AdapterConfig(
        base_model=base.name,
        base_revision=base.revision,
        base_digest=base.digest,
        family=family_of(model.config).name,
        objective=objective,
        readout=readout,
        trained=trained,
        dimensions=tuple(dimensions or (head.dimensions if head else ())),
        head=head,
        reward_template=options.reward_template,
        contextual_orders=options.contextual_orders,
        chat_template_digest=template_digest(processor.chat_template),
        dtype=cast(Any, str(model.config.dtype).removeprefix("torch.")),
        attn_implementation=options.attn_implementation,
        quantisation=("nf4" if options.load_in_4bit else "int8" if options.load_in_8bit else None),
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        max_length=options.max_length,
        versions={
            "medrm": __version__,  # of this code; a stale install names another
            **{
                name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
            },
        },
    )


def write_adapter_config(folder: Path, config: AdapterConfig) -> None:
    """Writes `medrm.json`."""
    with changing(folder / MEDRM_FILE):
        write_atomically(folder / MEDRM_FILE, [config_bytes(config)])


def config_bytes(config: AdapterConfig) -> bytes:
    """Returns the content of `medrm.json`."""
    record = dataclasses.asdict(config)
    if record["head"] is not None:
        del record["head"]["dimensions"]
    if config.image_conversion is None:
        del record["image_conversion"]
    if config.training_images is not None:
        del record["training_pixel_digests"]
    return f"{json.dumps(record, indent=2, sort_keys=True, allow_nan=False)}\n".encode()


def update_adapter_config(folder: Path, **changes: Any) -> None:
    """Changes fields of a saved folder's config, such as the score statistics.

    Raises:
        AdapterError: the folder has no valid config.
    """
    write_adapter_config(folder, dataclasses.replace(read_adapter_config(folder), **changes))


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Reads `medrm.json`.

    Raises:
        AdapterError: it is missing, is not JSON, or has missing or unknown keys or wrong values.
    """
    path = folder / MEDRM_FILE
    if not path.is_file():
        raise AdapterError(
            f"{folder} is no saved model of medrm: it has no {MEDRM_FILE}. Give the adapter "
            "folder of a run, such as RUN/adapter."
        )
    record = read_object(path, LARGEST[MEDRM_FILE])
    head = record.get("head")
    if isinstance(head, dict):
        head["dimensions"] = record.get("dimensions")
    record.setdefault("image_conversion", None)
    record.setdefault("training_images", None)  # versions have the one or the other
    record.setdefault("training_pixel_digests", [])
    config = from_json(path, record, AdapterConfig)
    problems = _contradictions(config)
    if problems:
        title = f"{path} contradicts itself. Save the adapter again:"
        raise AdapterError(report(title, problems))
    return config


def _contradictions(config: AdapterConfig) -> list[str]:
    """Returns what the fields of a config say against each other."""
    orders, names = config.contextual_orders, config.dimensions
    tied = () if config.head is None else config.head.tied_dimensions
    return applying(
        {
            "dimensions names none, or one twice": len(set(names)) != len(names) or not names,
            f"dimensions holds no name: printable, up to {_LONGEST_NAME} characters": not all(
                name.isprintable() and 0 < len(name.strip()) <= _LONGEST_NAME for name in names
            ),
            "base_model is longer than 255 characters": len(config.base_model) > 255,
            f"contextual_orders is {orders}; accepted: 0, 1 or an even number": orders > 1
            and orders % 2 == 1,
            "readout 'reward' needs a head, and head is null": (
                config.readout == "reward" and config.head is None
            ),
            "trained is 'head', and head is null": config.trained == "head" and config.head is None,
            "implicit_beta is for the readout implicit_reward": (
                config.readout == "reward" and config.implicit_beta is not None
            ),
            "score_statistics names what is no dimension, or a spread below 0": any(
                name not in names or numbers.get("std", 0) < 0 or numbers.get("temperature", 0) < 0
                for name, numbers in config.score_statistics.items()
            ),
            "tied_dimensions names what is no dimension": not {*tied} <= {*names},
            "min_pixels is above max_pixels": (
                (config.min_pixels or 1) > (config.max_pixels or math.inf)
            ),
        }
    )
