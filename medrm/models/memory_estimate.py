"""How much memory a training step or an evaluation takes, found by running it without numbers.

Published formulas of activations (Korthikanti et al. 2022, "Reducing Activation Recomputation in
Large Transformer Models", https://arxiv.org/abs/2205.05198) are of one architecture trained as a
whole: 34 L H + 5 A L^2 bytes a layer. Grouped queries, gated MLPs, a frozen base under LoRA, towers
and shared prefixes each change what autograd keeps. So nothing is assumed here: the very code of a
step runs on torch's fake tensors, which have shapes and no storage, and what is alive is added up
as it comes and goes. Floating-point tensors are fake; integers (tokens, positions, grids, indices)
stay real, for models decide by them what they compute.

What operators hold for themselves while they run, and what an allocator leaves unused between its
blocks, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FACTORIES = frozenset(("empty", "empty_strided", "zeros", "ones", "full", "rand", "randn"))
"""Operators that make tensors of none."""

_INDEXED = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)

_SAYS = {torch.ops.aten._local_scalar_dense.default: 0.0, torch.ops.aten.equal.default: False}
"""Operators that ask for a number, and what is said of a fake one; such as go into a log."""

_SMALLEST_OFFLOADED = 1024
"""Bytes from which TRL moves a tensor to main memory."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """The bytes of a device at the peak of a training step, by part.

    Attributes:
        weights: that are frozen, and buffers.
        trained: weights that learn: adapter and head, or the model.
        gradients: of them.
        optimiser: states.
        activations: what else is alive at the peak.
        offloaded: of the activations, what lies in main memory instead and is not among them.
    """

    weights: int
    trained: int
    gradients: int
    optimiser: int
    activations: int
    offloaded: int = 0

    @property
    def total(self) -> int:
        """All that lies on the device."""
        return self.weights + self.trained + self.gradients + self.optimiser + self.activations


class MemoryMeter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no type there
    """Adds up the bytes of the tensors that operators give, real or fake, while they are alive.

    Attributes:
        now: bytes that are alive.
        peak: the most that were; may be set back to `now`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Adds tensors; views of what is counted already add nothing."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._alive:
                self._alive[key] = weakref.finalize(storage, self._forget, key, size)
                self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator and counts what it gives."""
        output = self.run(func, args, kwargs or {})
        self.count(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        return output

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what the operator gives."""
        return func(*args, **kwargs)


class Rehearsal(MemoryMeter):  # type: ignore[no-untyped-call]
    """Runs operators on fake tensors where one of their tensors is fake, else as they are.

    Attributes:
        offloaded: the most bytes that lay in main memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.offloaded = self._offloaded_now = 0

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what the operator gives."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if func in _INDEXED:
                args = (args[0], _places(args[1]), *args[2:])
            elif func in _SAYS:
                return _SAYS[func]
            elif func is torch.ops.aten.nonzero.default:  # as many as there may be
                return torch.ones(args[0].shape, dtype=torch.bool).nonzero()
        elif tensors or not _makes_floats(func, kwargs):
            return func(*args, **kwargs)
        with self.fake:
            return func(*args, **kwargs)

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Adds tensors but for real integers, which are small; masks of attention may be real."""
        super().count(
            tensor
            for tensor in tensors
            if isinstance(tensor, FakeTensor)
            or tensor.is_floating_point()
            or tensor.dtype == torch.bool
        )

    def pretend(self, model: nn.Module) -> None:
        """Replaces what a model on the meta device holds by fake tensors, and counts them."""
        made: dict[int, nn.Parameter] = {}  # weights may be shared
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if id(weight) not in made:
                    fake = self._like(weight)
                    made[id(weight)] = nn.Parameter(fake, requires_grad=weight.requires_grad)
                module._parameters[name] = made[id(weight)]
            for name, tensor in list(module.named_buffers(recurse=False)):
                module._buffers[name] = self._like(tensor)
        self.count([*model.parameters(), *model.buffers()])
        vars(model)["to"] = lambda *unused, **options: model  # trainers move it to where it is

    def _like(self, tensor: Tensor) -> FakeTensor:
        return FakeTensor(self.fake, tensor.detach().to("meta"), torch.device("cpu"))

    def offloading(self) -> AbstractContextManager[Any]:
        """Returns a context in which activations wait for the backward pass in main memory."""

        def pack(tensor: Tensor) -> Any:
            size = tensor.numel() * tensor.element_size()
            stays = isinstance(tensor, nn.Parameter) or size < _SMALLEST_OFFLOADED
            if stays or not isinstance(tensor, FakeTensor):
                return tensor
            self._offloaded_now += size
            self.offloaded = max(self.offloaded, self._offloaded_now)
            return tensor.shape, tensor.stride(), tensor.dtype, size

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            shape, stride, dtype, size = packed
            self._offloaded_now -= size
            return torch.empty_strided(shape, stride, dtype=dtype)

        return saved_tensors_hooks(pack, unpack)


def _makes_floats(func: Any, kwargs: Mapping[str, Any]) -> bool:
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    if str(kwargs.get("device")) == "meta":  # a model whose parts are looked at
        return False
    return func.__name__.partition(".")[0] in _FACTORIES and dtype.is_floating_point


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns indices without masks: how many places one gives must be known.

    A fake mask, whose content nobody knows, gives all that there are.
    """
    places: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool:
            places.append(index)
        else:
            is_fake = isinstance(index, FakeTensor)
            mask = torch.ones(index.shape, dtype=torch.bool) if is_fake else index
            places += mask.nonzero(as_tuple=True)
    return places


def rehearse_step(
    rehearsal: Rehearsal,
    model: nn.Module,
    step: Callable[[], object],
    optimiser: Callable[[], torch.optim.Optimizer] | int,
    accumulates: bool,
    offloads: bool = False,
) -> StepMemory:
    """Returns the memory of a training that is under way, at its peak.

    Args:
        rehearsal: whose tensors the model's are (`pretend`).
        model: that learns.
        step: forward and backward pass of a micro-batch.
        optimiser: makes it; or the bytes of its states for each number that learns, where it does
            not run here.
        accumulates: whether gradients of an earlier micro-batch are there.
        offloads: whether activations wait in main memory.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained, weights = _bytes(learning), rehearsal.now
    weights -= trained
    with rehearsal:
        for parameter in learning:
            parameter.grad = torch.empty_like(parameter)
        gradients = rehearsal.now - weights - trained
        if isinstance(optimiser, int):
            states, at_update = optimiser * sum(p.numel() for p in learning), rehearsal.now
        else:
            running = optimiser()
            running.step()
            states = rehearsal.now - weights - trained - gradients
            rehearsal.peak = rehearsal.now
            running.step()
            at_update = rehearsal.peak - states
        if not accumulates:
            for parameter in learning:
                parameter.grad = None
        rehearsal.peak = rehearsal.now
        with rehearsal.offloading() if offloads else nullcontext():
            step()
    in_memory = 0 if isinstance(optimiser, int) else states
    at_peak = max(rehearsal.peak - in_memory, at_update)
    activations = max(0, at_peak - weights - trained - gradients)
    return StepMemory(weights, trained, gradients, states, activations, rehearsal.offloaded)


def rehearse_forward(rehearsal: Rehearsal, forward: Callable[[], object]) -> tuple[int, int]:
    """Returns what a forward pass without gradients takes besides the weights, and what it leaves.

    Args:
        rehearsal: whose tensors the model's are.
        forward: the pass; what it returns is what it leaves.

    Returns:
        bytes at the peak, and of what is returned (rewards, or keys and values).
    """
    before = rehearsal.peak = rehearsal.now
    with rehearsal, torch.no_grad():
        output = forward()
    left = rehearsal.now - before
    del output
    return rehearsal.peak - before, left


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
