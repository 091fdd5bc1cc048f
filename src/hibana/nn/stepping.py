"""What :func:`hibana.run` plans once for a network: the names of its layers, and how a chain of them steps.

A chain is a plain ``nn.Sequential``. Over one step its neurons, and a linear layer before them, are called
without the calls of their modules, as long as nothing could see the difference: no hook, no ``forward`` of an
object's own, no mode or transform of torch. Everything else is called as it is.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana import spikes
from hibana.compiler import State, is_watched, one_step
from hibana.nn.step_node import WeightSums, step
from hibana.spikes.layer import LEFT, SMALLEST_WORK

__all__ = ["Chain", "Plan", "Run"]


class Run(Protocol):
    """What a chain knows of the run that it is within."""

    state: dict[str, State] | None
    ended: dict[str, State]


class Plan:
    """What was found in a network, and holds while it has the same modules.

    Args:
        net: the network.
        names: of its layers over time.
    """

    __slots__ = ("chain", "modules", "names")

    def __init__(self, net: nn.Module, names: dict[Any, str]) -> None:
        self.names = names
        self.modules = [(module, dict(module._modules)) for module in net.modules()]
        once = sum(each is not None for _, inner in self.modules for each in inner.values())
        plain = type(net) is nn.Sequential and once == len(self.modules) - 1
        self.chain = Chain(net, names) if plain else None

    def __reduce__(self) -> Any:
        return _nothing, ()  # a copy of the network makes its own

    def holds(self, net: nn.Module) -> bool:
        """Whether `net` has the modules that were found, and is the network that they were found in."""
        if self.modules[0][0] is not net:
            return False
        for module, inner in self.modules:  # noqa: SIM110 - a generator takes twice as long
            if module._modules != inner:
                return False
        return True


def _nothing() -> None:
    """What a copy of a plan is."""


class Chain:
    """The layers of a plain ``nn.Sequential``, none of them in two places."""

    def __init__(self, net: nn.Module, names: dict[Any, str]) -> None:
        self.net, self.layers = net, list(net._modules.values())
        self.links: list[Any] = []
        for layer in self.layers:
            if layer not in names or not layer.is_cell_alone():
                self.links.append(layer)
                continue
            linear = self.links[-1] if self.links else None
            if type(linear) is nn.Linear or type(linear) is spikes.Linear:
                self.links.pop()
            else:
                linear = None
            self.links.append(_Neurons(layer, names[layer], linear))

    def steps(self, inputs: Any) -> bool:
        """Whether it may take `inputs` itself: one step, and nobody looks at calls of modules."""
        return (
            type(inputs) is Tensor
            and inputs.ndim > 1
            and inputs.shape[0] == 1
            and not is_watched(inputs)
            and not torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call] # torch's own
            and _is_bare(self.net)
            and list(self.net._modules.values()) == self.layers
        )

    def __call__(self, run: Run, values: Tensor) -> Any:
        """What the network gives."""
        for link in self.links:
            values = link(run, values) if type(link) is _Neurons else link(values)
        return values


def _is_bare(module: nn.Module) -> bool:
    """Whether a call of `module` is one of its class's ``forward`` and no more."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or own.get("_compiled_call_impl") is not None
    )


class _Neurons:
    """A layer of neurons, and the linear layer before it, if there is one."""

    __slots__ = ("layer", "linear", "name", "sums")

    def __init__(self, layer: Any, name: str, linear: Any) -> None:
        self.layer, self.name, self.linear = layer, name, linear
        self.sums: WeightSums | None = None

    def __call__(self, run: Run, values: Tensor) -> Tensor:
        layer, linear = self.layer, self.linear
        begun = None if run.state is None else run.state.get(self.name)
        if begun is None or not _is_bare(layer) or not (linear is None or self._takes(values)):
            return self._called(values)
        weight = bias = None
        shape = values.shape
        if linear is not None:
            weight, bias = linear._parameters["weight"], linear._parameters["bias"]
            shape = torch.Size((*shape[:-1], weight.shape[0]))
        one = one_step.prepared(layer._modules["cell"], layer.backend, shape)
        if one is None or not one.goes_on(begun):
            return self._called(values)
        if torch.is_grad_enabled() and any(
            [t.requires_grad for t in (values, weight, bias, *begun) if t is not None]
        ):
            if not one.reads(values) or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
                return self._called(values)  # a checkpoint counts what is saved
            if weight is not None and (self.sums is None or not self.sums.are_of(weight, bias)):
                self.sums = WeightSums(weight, bias)
            outputs, ended = step(one, values, weight, bias, begun, self.sums)
        else:
            currents = values if weight is None else functional.linear(values, weight, bias)
            if not one.reads(currents):
                return self._called(values)
            outputs, ended = one(currents, begun)
        run.ended[self.name] = ended
        return outputs

    def _called(self, values: Tensor) -> Tensor:
        """The same by calls of the modules."""
        outputs: Tensor = self.layer(values if self.linear is None else self.linear(values))
        return outputs

    def _takes(self, values: Tensor) -> bool:
        """Whether the linear layer is the product of `values` with its weight, by torch, and no more."""
        linear = self.linear
        weight, bias = linear._parameters.get("weight"), linear._parameters.get("bias")
        if not _is_bare(linear) or weight is None or values.ndim < 2 or torch.is_autocast_enabled("cpu"):
            return False
        if any(t is not None and type(t) not in (nn.Parameter, Tensor) for t in (weight, bias)):
            return False
        if type(values) is not Tensor or not (weight.dtype is values.dtype and weight.is_cpu):
            return False
        if type(linear) is nn.Linear:
            return True
        small = values.numel() * linear.out_features < SMALLEST_WORK // 2
        linear.__dict__["_reason"] = LEFT
        return bool(linear.mode == "auto" and small and values.stride(0) != 0)
