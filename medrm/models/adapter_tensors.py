"""The weights of a saved model's own file: what it holds, and whether that fits the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from medrm.errors import AdapterError, report, shortened
from medrm.models.adapter_config import AdapterConfig
from medrm.models.adapter_files import MEDRM_FILE
from medrm.models.reward_model import HEAD
from medrm.models.strict_json import parsed, refused

_LONGEST_HEADER = 2**24


def tensors_of(
    model: PreTrainedModel | PeftModel, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Returns what the adapter or head file holds, by its names in the file."""
    if isinstance(model, PeftModel):
        # Otherwise PEFT asks the hub whether the base's vocabulary has grown.
        return dict(
            get_peft_model_state_dict(model, state_dict=state_dict, save_embedding_layers=False)
        )
    state = model.state_dict() if state_dict is None else state_dict
    return {name: tensor for name, tensor in state.items() if name.startswith(f"{HEAD}.")}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Writes the adapter or head file, in float32 whatever the training held them in."""
    save_file(
        {
            name: tensor.detach().cpu().float().contiguous()
            for name, tensor in sorted(tensors.items())
        },
        path,
        # One entry: with two their order, and so the bytes of the file, would vary.
        metadata={"dimensions": json.dumps(config.dimensions)},
    )


def read_tensors(path: Path, config: AdapterConfig) -> dict[str, Tensor]:
    """Reads the adapter or head file.

    Raises:
        AdapterError: missing, unreadable, of other dimensions than the config, or with weights that
            are no finite numbers.
    """
    with refused(path):
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get("dimensions", "null")
            dimensions = json.loads(stated)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if dimensions != list(config.dimensions):
        raise AdapterError(
            f"{path} was saved for the dimensions {shortened(str(dimensions))}, {MEDRM_FILE} names "
            f"{shortened(str(list(config.dimensions)))}. The two files do not belong together; "
            "save again."
        )
    problems = [
        f"{name[:200]} {problem}"
        for name, tensor in tensors.items()
        if (problem := _problem(tensor)) is not None
    ]
    if problems:
        title = f"{path} holds what no trained weights are. Save it again:"
        raise AdapterError(report(title, problems))
    return tensors


def _check_header(path: Path) -> None:
    """Reads the header of a safetensors file as strictly as settings; the library reads it again.

    Raises:
        ValueError: it is larger than any adapter's, has a key twice, or is no object.
    """
    with path.open("rb") as file:
        stated = file.read(8)
        length = int.from_bytes(stated, "little")
        if len(stated) < 8 or not 0 < length <= _LONGEST_HEADER:
            raise ValueError(f"it states a header of {length} bytes")
        parsed(file.read(length))


def _problem(tensor: Tensor) -> str | None:
    """Returns what is wrong with the weights of one tensor."""
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"is of type {str(tensor.dtype).removeprefix('torch.')}"
    return None if bool(tensor.isfinite().all()) else "is not finite everywhere"


def check_rank(path: Path, tensors: Mapping[str, Tensor], rank: int) -> None:
    """Refuses a rank that the weights do not have, before layers of that rank are made.

    Raises:
        AdapterError: it is not theirs.
    """
    for name, tensor in tensors.items():
        if ".lora_A." in name and (tensor.ndim == 0 or tensor.shape[0] % rank):
            raise AdapterError(
                f"{path}: {name[:200]} has shape {list(tensor.shape)[:8]}, which is not of the "
                f"rank {rank} that its settings name. Save the adapter again."
            )


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raises AdapterError unless both hold the same names with the same shapes and types.

    A 16-bit tensor is accepted where the model holds it so.
    """
    problems = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    surplus = sorted(tensors.keys() - expected.keys())
    problems += [f"{name[:200]} is not expected" for name in surplus]
    for name in sorted(tensors.keys() & expected.keys()):
        tensor, like = tensors[name], expected[name]
        if tensor.shape != like.shape:
            problems.append(
                f"{name} has shape {list(tensor.shape)[:8]}, expected {list(like.shape)}"
            )
        elif tensor.dtype not in (torch.float32, like.dtype):
            problems.append(f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}")
    if problems:
        raise AdapterError(
            report(f"{path} does not fit the base model and {MEDRM_FILE}. Save it again:", problems)
        )


def fill(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Copies the tensors of an adapter file into a model that has the same names.

    PEFT's own way renames some as if they came from a stock checkpoint (Mistral's shared experts),
    and says nothing of those that then fit nowhere.
    """
    with torch.no_grad():
        for name, parameter in tensors_of(model).items():
            parameter.copy_(tensors[name])


def check_finite(folder: Path, model: PreTrainedModel) -> None:
    """Refuses a checkpoint whose weights are not finite everywhere.

    Raises:
        AdapterError: names the first.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            raise AdapterError(
                f"The weights in {folder} are not finite everywhere, such as {name}. Save the "
                "model again, or download it again."
            )
