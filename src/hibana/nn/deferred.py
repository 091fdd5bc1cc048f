"""A tensor that is computed when it is read: a normalisation leaves its output to the neurons behind it.

In a ``forward`` of its own a network calls one layer after another, and no layer sees who takes its output.
So a normalisation that was followed by neurons when :func:`hibana.optimize` watched the network returns a
:class:`Deferred`. A layer of neurons that is called with one computes both in one pass. Anything else that
touches it (a sum, ``shape``, ``print``) gets the tensor that the layer would have returned. If nothing ever
does, it is not computed, and running statistics do not count the batch.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["Call", "Deferred", "Fuses", "Layer", "deferred"]


class Layer(Protocol):
    """A layer whose output may be deferred."""

    def computed(self, inputs: Tensor) -> Tensor:
        """The output, now."""

    def computed_again(self, inputs: Tensor) -> Tensor:
        """The same, without counting the batch once more."""


class Fuses(Protocol):
    """What computes a deferred call and the neurons behind it in one pass."""

    def emitted(self, call: "Call", neurons: Any) -> Tensor | None:
        """What `neurons` emit for the output of `call`; None if it must be computed first."""

    def note(self, reader: str) -> None:
        """Records that something other than neurons read the output."""


@dataclass(eq=False, repr=False)
class Call:
    """A call of `layer` with `inputs` that has yet to be computed."""

    layer: Layer
    inputs: Tensor
    """A tensor, or a :class:`Deferred`."""
    fuses: Fuses
    steps: int | None
    """T, if time and batch of `inputs` are joined."""
    read_from: list[tuple[Tensor, int]]
    """The inputs and parameters, and their versions when the layer was called."""
    differentiable: bool
    value: Tensor | None = None
    emitted: bool = False
    """Whether neurons were computed from it in one pass."""

    def read(self, reader: str | None = None) -> Tensor:
        """The output of the layer, for a `reader` who is no layer of neurons."""
        if reader is not None:
            self.fuses.note(reader)
        if self.value is None:
            self.check_unchanged()
            inputs = self.inputs.call.read() if type(self.inputs) is Deferred else self.inputs
            with torch.set_grad_enabled(self.differentiable):
                compute = self.layer.computed_again if self.emitted else self.layer.computed
                self.value = compute(inputs)
        return self.value

    def check_unchanged(self) -> None:
        """Checks that inputs and parameters are what they were when the layer was called.

        Raises:
            RuntimeError: if they were written to or replaced since.
        """
        if self._is_changed():
            raise RuntimeError(
                "an input or a parameter of a layer was changed in place before the layer's output was read, "
                "where hibana.optimize had found that neurons follow: change a copy, or "
                "hibana.optimize(net, undo=True)"
            )

    def _is_changed(self) -> bool:
        now = [tensor for tensor, _ in _read_from(self.layer, self.inputs)]
        before = [tensor for tensor, _ in self.read_from]
        same = len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
        if type(self.inputs) is Deferred and self.inputs.call.value is None:
            same = same and not self.inputs.call._is_changed()
        return not same or any(_version(tensor) != version for tensor, version in self.read_from)


class Deferred(Tensor):
    """The output of a :class:`Call`. It holds no numbers: every operation on it is done on the output."""

    call: Call

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(getattr(getattr(func, "__self__", func), "__name__", func))

        def read(value: Any) -> Any:
            return value.call.read(name) if type(value) is Deferred else value

        args, kwargs = tree_map(read, (args, kwargs or {}))
        return func(*args, **cast(dict[str, Any], kwargs))


def deferred(layer: Layer, inputs: Tensor, fuses: Fuses, steps: int | None) -> Deferred:
    """The output of `layer` for `inputs`, not computed yet."""
    differentiable = torch.is_grad_enabled()
    blank = torch.full((), torch.nan, dtype=torch.float32, device="cpu")
    if differentiable:
        error: Any = torch._C._functions.DelayedError(_NO_GRADIENT, 1)
        blank = error(blank.requires_grad_())
    found = blank.as_subclass(Deferred)
    found.call = Call(layer, inputs, fuses, steps, _read_from(layer, inputs), differentiable)
    return found


def _read_from(layer: Any, inputs: Tensor) -> list[tuple[Tensor, int]]:
    """What a call of `layer` reads, without running statistics, which other calls may update."""
    parameters = layer.parameters() if isinstance(layer, nn.Module) else ()
    tensors = parameters if type(inputs) is Deferred else (inputs, *parameters)
    return [(tensor, _version(tensor)) for tensor in tensors]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


_NO_GRADIENT = (
    b"hibana.optimize: the output of a normalisation went into code that reads its memory directly, such as "
    b"a torch.autograd.Function, where neurons followed on the example; call hibana.optimize(net, undo=True)"
)
"""Raised if a gradient comes to the blank itself, which torch's own functions never see."""
