"""The head that a training starts from: the trained one of a whole reward model, if it has one.

A whole model (trained as such, or made by `medrm merge` of an adapter or of others' weights) is a
checkpoint beside which `medrm.json` and `head.safetensors` lie. Its head counts for the dimensions
whose names it knows; its bytes are part of the digest by which the base is known.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from medrm.config.options import ModelOptions
from medrm.errors import applying, refuse
from medrm.models.adapter_config import AdapterConfig, read_adapter_config
from medrm.models.adapter_files import HEAD_FILE, MEDRM_FILE
from medrm.models.adapter_tensors import check_tensors, read_tensors
from medrm.models.base_model import checkpoint_file, readable, resolve_model
from medrm.models.reward_model import HEAD, HeadSpec, head_of

logger = logging.getLogger(__name__)

_LAYERS = f"{HEAD}.layers."


@dataclass(frozen=True)
class StartHead:
    """The trained head of a whole reward model.

    Attributes:
        path: of its file.
        contract: of the model.
        layers: its layers' weights by their names in the model; the last layer has a row for each
            dimension.
    """

    path: Path
    contract: AdapterConfig
    layers: Mapping[str, Tensor]

    def fit(self, spec: HeadSpec) -> HeadSpec:
        """Returns the shape that a run asks for with the layers that this head has."""
        saved = self._spec
        return replace(spec, kind=saved.kind, hidden_size=saved.hidden_size)

    @property
    def _spec(self) -> HeadSpec:
        assert self.contract.head is not None
        return self.contract.head

    def fill(self, model: PreTrainedModel) -> None:
        """Copies the layers into the head of a model; rows follow the names of its dimensions.

        Raises:
            AdapterError: they are not of the shapes that the contract names.
        """
        head = head_of(model)
        rows = [self.contract.dimensions.index(name) for name in head.spec.dimensions]
        last = f"{_LAYERS}{len(head.layers) - 1}."
        chosen = {
            name: tensor[rows] if name.startswith(last) else tensor
            for name, tensor in self.layers.items()
        }
        state = {f"{HEAD}.{name}": tensor for name, tensor in head.state_dict().items()}
        parameters = {name: tensor for name, tensor in state.items() if name.startswith(_LAYERS)}
        check_tensors(self.path, chosen, parameters)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(chosen[name])


def start_head(options: ModelOptions, spec: HeadSpec) -> StartHead | None:
    """Returns the trained head that lies with a base, where a training starts from it.

    None: there is none, or it knows not all of the dimensions, which is told.

    Args:
        options: which base, and how its rewards will be read.
        spec: of the head that the run asks for.

    Raises:
        AdapterError: the files of the head are not what they should be.
        ConfigError: the head reads another position, or its layers are others than asked for.
    """
    where = resolve_model(options.model_name_or_path)
    with readable(f"The head of {options.model_name_or_path!r}"):
        names = (MEDRM_FILE, HEAD_FILE)
        files = [checkpoint_file(where, name, options.model_revision) for name in names]
    if None in files:
        return None
    path = Path(str(files[1]))
    contract = read_adapter_config(Path(str(files[0])).parent)
    if contract.head is None or contract.trained != "full":
        return None
    unknown = [name for name in spec.dimensions if name not in contract.dimensions]
    if unknown:
        logger.warning(
            "The head of %s scores %s, not %s, which this run learns as well: the run's head "
            "begins anew. The other weights are those of that model.",
            options.model_name_or_path,
            ", ".join(contract.dimensions),
            ", ".join(unknown),
        )
        return None
    _check(options, contract)
    layers = {
        name: tensor
        for name, tensor in read_tensors(path, contract).items()
        if name.startswith(_LAYERS)
    }
    logger.info("The head starts as the trained one of %s.", options.model_name_or_path)
    return StartHead(path, contract, layers)


def _check(options: ModelOptions, contract: AdapterConfig) -> None:
    """Refuses to put a trained head where its states are not, or to be told of other layers.

    Raises:
        ConfigError: names all that differs.
    """
    head, default = contract.head, ModelOptions()
    assert head is not None
    saved = {
        "reward_template": contract.reward_template,
        "contextual_orders": contract.contextual_orders,
        "head": head.kind,
        "head_hidden_size": head.hidden_size,
    }
    problems = {
        f"{name} is {value!r} there, {getattr(options, name)!r} here": value
        != getattr(options, name)
        # What is not said of the layers follows the head.
        and (not name.startswith("head") or getattr(options, name) != getattr(default, name))
        for name, value in saved.items()
    }
    refuse(
        applying(problems),
        f"The training would start from the trained head of {options.model_name_or_path}, which "
        "was trained otherwise. Give what is there (leave out what is said of head); for a head "
        f"that begins anew, a copy of the model without {MEDRM_FILE} and {HEAD_FILE}.",
    )
