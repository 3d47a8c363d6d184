"""A model that `medrm check` is asked about, and the parts of it that need no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedConfig, ProcessorMixin

from medrm.chat_template import RewardTemplate
from medrm.config.options import ModelOptions
from medrm.errors import ConfigError
from medrm.models.adapter_config import AdapterConfig, read_adapter_config
from medrm.models.base_model import load_config, resolve_model
from medrm.models.families import family_of
from medrm.models.find_base import find_base
from medrm.models.processors import load_processor
from medrm.pipeline.requests import CheckRequest
from medrm.schema import Case, ImageRef
from medrm.scorer.collator import Collator
from medrm.scorer.mock_judges import PREFIX
from medrm.scorer.specs import find_saved, refuse_needless_base

QUESTION = "Is there a pleural effusion?"
ANSWERS = ("No effusion is seen.", "There is a small effusion on the left.")
"""Of the synthetic case."""

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class CheckedModel:
    """A model that is named, and the parts of it that need no weights.

    Attributes:
        request: what is asked.
        folder: of a saved model; None: a base.
        contract: of a saved model.
        base: the base model's name or folder.
        config: of the base.
    """

    request: CheckRequest
    folder: Path | None
    contract: AdapterConfig | None
    base: str
    config: PreTrainedConfig

    @classmethod
    def find(cls, request: CheckRequest) -> CheckedModel:
        """Returns the model of that name.

        Raises:
            MedrmError: it is not found, or its config cannot be read.
        """
        if request.model.startswith(PREFIX):
            raise ConfigError(
                f"{request.model} is a rule, not a model: there is nothing to check. Give a base "
                "model or a saved one."
            )
        folder = find_saved(request.model, request.revision)
        refuse_needless_base(request.base, request.model, folder)
        contract = None if folder is None else read_adapter_config(folder)
        base, revision = request.model, request.revision
        if folder is not None and contract is not None:
            base = find_base(contract, folder, request.base)
            revision = contract.base_revision
        config = load_config(base, revision or "main", request.trust_remote_code)
        return cls(request, folder, contract, base, config)

    @cached_property
    def options(self) -> ModelOptions:
        """How the base is loaded."""
        contract = self.contract
        return ModelOptions(
            model_name_or_path=self.base,
            model_revision=(contract.base_revision if contract else self.request.revision)
            or "main",
            dtype=self.request.dtype,
            trust_remote_code=self.request.trust_remote_code,
        )

    @cached_property
    def processor(self) -> ProcessorMixin:
        """As it is saved, with the request's limits.

        Raises:
            ConfigError: it cannot be loaded.
        """
        request, source = self.request, self.base if self.folder is None else str(self.folder)
        return load_processor(
            source,
            self.options.model_revision,
            request.min_pixels,
            request.max_pixels,
            request.trust_remote_code,
        )

    @property
    def takes_images(self) -> bool:
        """Whether the base reads images."""
        return family_of(self.config).parts.takes_images

    @property
    def template(self) -> RewardTemplate:
        """What follows an answer before a reward is read."""
        contract = self.contract
        return ModelOptions.reward_template if contract is None else contract.reward_template

    @cached_property
    def collator(self) -> Collator:
        """Of the processor, as rewards are read.

        Raises:
            ConfigError: the processor cannot be loaded.
        """
        return Collator(self.processor, self.template)

    def case(self, *sizes: tuple[int, int]) -> Case:
        """Returns a synthetic case with images of these sizes, which are never read."""
        images = [
            ImageRef(f"{width} x {height}", f"{width}x{height}", bytes) for width, height in sizes
        ]
        return Case("check", tuple(images), QUESTION, ANSWERS)

    @property
    def has_weights(self) -> bool:
        """Whether the base's weights are on this machine."""
        where, revision = resolve_model(self.base), self.options.model_revision
        if Path(where).is_dir():
            return any(Path(where).glob("*.safetensors"))
        cached = (try_to_load_from_cache(where, name, revision=revision) for name in _WEIGHTS)
        return any(isinstance(path, str) for path in cached)
