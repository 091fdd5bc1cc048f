"""What :func:`hibana.run` plans once for a network: the names of its layers, and how a chain of them steps.

A chain is a plain ``nn.Sequential``. Over one step its neurons, and a linear layer before them, are called
without the calls of their modules, as long as nothing could see the difference: no hook, no ``forward`` of an
object's own, no mode or transform of torch. Everything else is called as it is.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.compiler import State, ambient, one_step
from hibana.compiler.ambient import is_watched
from hibana.nn.step_node import Link, WeightSums, step

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
        self.net, self.layers = net, list[Any](net._modules.values())
        self.links: list[Any] = []
        for layer in self.layers:
            if layer not in names or not layer.is_cell_alone():
                self.links.append(layer)
                continue
            linear = self.links[-1] if self.links else None
            if type(linear) is nn.Linear or "leaves_to_torch" in vars(type(linear)):
                self.links.pop()
            else:
                linear = None
            made = _Neurons(layer, names[layer], linear)
            if self.links and type(self.links[-1]) is _Segment:
                self.links[-1].links.append(made)
            else:
                self.links.append(_Segment([made]))

    def steps(self, inputs: Any) -> bool:
        """Whether it may take `inputs` itself: one step, and nobody looks at calls of modules."""
        return (
            type(inputs) is Tensor
            and inputs.ndim > 1
            and inputs.shape[0] == 1
            and inputs.stride(0) != 0  # of such a one hibana's linear layers do otherwise
            and not is_watched(inputs)
            and not torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call] # torch's own
            and _is_bare(self.net)
            and list(self.net._modules.values()) == self.layers
        )

    def __call__(self, run: Run, values: Tensor) -> Any:
        """What the network gives."""
        if len(self.links) == 1 and type(self.links[0]) is _Segment:
            return self.links[0](run, values)
        with ambient.Within(run):
            for link in self.links:
                values = link(run, values) if type(link) is _Segment else link(values)
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


class _Segment:
    """Layers of neurons one after the other, each with a linear layer before it or without."""

    __slots__ = ("links",)

    def __init__(self, links: list["_Neurons"]) -> None:
        self.links = links

    def __call__(self, run: Run, values: Tensor) -> Tensor:
        if run.state is not None and torch.is_grad_enabled():
            links = self._with_gradient(run.state, values)
            if links is not None:
                outputs, ended = step(links, values)
                run.ended |= zip([link.name for link in self.links], ended, strict=True)
                return outputs
        for link in self.links:
            values = link(run, values)
        return values

    def _with_gradient(self, state: dict[str, State], values: Tensor) -> list[Link] | None:
        """The step for autograd to record; None if there is none to record, or modules must be called."""
        found, learns, shape = list[Link](), values.requires_grad, values.shape
        for link in self.links:
            weight, bias = given = link.tensors(shape) or (None, None)
            begun = state.get(link.name)
            if begun is None or not _is_bare(link.layer) or (link.linear is not None and weight is None):
                return None
            if weight is not None:
                if not _are_plain(values, weight, bias):
                    return None
                shape = torch.Size((*shape[:-1], weight.shape[0]))
            one = one_step.prepared(link.layer._modules["cell"], link.layer.backend, shape)
            if one is None or not one.goes_on(begun):
                return None
            learns = learns or any(t.requires_grad for t in (*given, *begun) if t is not None)
            found.append(
                Link(one, weight, bias, None if weight is None else link.summed(weight, bias), begun)
            )
        if not learns or not found[0].one.reads(values) or torch.is_autocast_enabled("cpu"):
            return None
        # a checkpoint counts what is saved
        return found if ambient.saved_tensor_hooks() is None else None


class _Neurons:
    """A layer of neurons, and the linear layer before it, if there is one."""

    __slots__ = ("layer", "linear", "name", "sums")

    def __init__(self, layer: Any, name: str, linear: Any) -> None:
        self.layer, self.name, self.linear = layer, name, linear
        self.sums: WeightSums | None = None

    def __call__(self, run: Run, values: Tensor) -> Tensor:
        """A step without a gradient; or by calls of the modules."""
        layer = self.layer
        begun = None if run.state is None else run.state.get(self.name)
        if begun is None or not _is_bare(layer):
            return self._called(run, values, self.linear)
        if self.linear is not None:
            given = self.tensors(values.shape)
            if given is None:
                return self._called(run, values, self.linear)
            values = functional.linear(values, *given)
        one = one_step.prepared(layer._modules["cell"], layer.backend, values.shape)
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in (values, *begun))
        if one is None or learns or not (one.reads(values) and one.goes_on(begun)):
            return self._called(run, values, None)
        outputs, run.ended[self.name] = one(values, begun)
        return outputs

    def tensors(self, shape: torch.Size) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the linear layer, if it is their product with inputs of `shape`, and no more."""
        linear = self.linear
        if linear is None or not _is_bare(linear):
            return None
        held = linear._parameters
        if held.get("weight") is None or "bias" not in held:
            return None
        if type(linear) is not nn.Linear and not linear.leaves_to_torch(shape):
            return None
        return held["weight"], held["bias"]

    def summed(self, weight: Tensor, bias: Tensor | None) -> WeightSums:
        """Where parts of the gradient of `weight` and `bias` are left."""
        if self.sums is None or not self.sums.are_of(weight, bias):
            self.sums = WeightSums(weight, bias)
        return self.sums

    def _called(self, run: Run, values: Tensor, linear: Any) -> Tensor:
        """The same by calls of the modules."""
        with ambient.Within(run):
            outputs: Tensor = self.layer(values if linear is None else linear(values))
        return outputs


def _are_plain(values: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the product of `values` and `weight` is one that :mod:`hibana.nn.step_node` differentiates."""
    if bias is not None and type(bias) not in _PLAIN:
        return False
    return type(weight) in _PLAIN and weight.dtype is values.dtype and weight.is_cpu


_PLAIN = (nn.Parameter, Tensor)
