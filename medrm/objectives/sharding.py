"""What FSDP2 needs of a trainer: weights lie in parts, and are computed with as on one device.

accelerate's own settings would compute the head in bfloat16 and look for layers that a model does
not have. Here the weights keep their precision, `bf16` means autocast as it does on one device, and
only classes of layers that the model has are gathered by themselves.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any, cast

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, DistributedType, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from medrm.errors import ConfigError

logger = logging.getLogger(__name__)


def forget_accelerator() -> None:
    """Lets a process have a second trainer: without it DeepSpeed and FSDP2 refuse one.

    After a training with FSDP the process is of a type from which accelerate chooses no plugin.
    """
    AcceleratorState._reset_state()
    state = PartialState()
    if state.distributed_type == DistributedType.FSDP:
        state.distributed_type = DistributedType.MULTI_GPU


def layer_names(model: nn.Module) -> list[str]:
    """Returns the classes of layers that are gathered by themselves, as far as the model has them.

    transformers names some that only models with other parts have, which accelerate refuses.
    """
    present = {type(module).__name__ for module in model.modules()}
    named = getattr(model, "_no_split_modules", None) or ()
    return sorted(present.intersection(named))


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor of which processes may hold parts; all of them call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class ShardedTraining:
    """Goes before a trainer in the bases; without FSDP it changes nothing."""

    accelerator: Any
    model: Any

    def create_accelerator_and_postprocess(self) -> None:
        """Makes the accelerator, which then neither casts weights nor rewards.

        Raises:
            ConfigError: the launch asks for DeepSpeed, and accelerate would do without.
        """
        super().create_accelerator_and_postprocess()  # type: ignore[misc] # of the trainer
        kind = self.accelerator.distributed_type
        if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and kind != DistributedType.DEEPSPEED:
            raise ConfigError(
                f"the launch file asks for DeepSpeed, and accelerate would train by {kind.value}; "
                "take accelerate_configs/ddp.yaml"
            )
        plugin = self._plugin
        if plugin is not None:
            plugin.mixed_precision_policy = None
            plugin.transformer_cls_names_to_wrap = layer_names(self.model)
            if not plugin.transformer_cls_names_to_wrap:
                logger.info("FSDP2 gathers %s as a whole", type(self.model).__name__)

    @property
    def _plugin(self) -> Any:
        return vars(self.accelerator.state).get("fsdp_plugin")

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> AbstractContextManager[Any]:
        """Returns autocast under FSDP, where accelerate puts none around the model's forward.

        Casts are not kept: they would hold what is freed after each layer.
        """
        if self._plugin is not None:
            autocast = self.accelerator.autocast(AutocastKwargs(cache_enabled=False))
        else:
            autocast = super().autocast_smart_context_manager(  # type: ignore[misc]
                cache_enabled
            )
        return cast(AbstractContextManager[Any], autocast)
