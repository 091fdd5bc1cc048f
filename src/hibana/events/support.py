"""Where the gradient of a layer's input can matter, read from the graph that autograd has built.

The node of a compiled spiking layer carries `support`: the bits ``[T, ceil(N/8)]`` of where its surrogate's
derivative can be non-zero. A gradient may be left out elsewhere only if nobody else looks at it. Anything
that is not known here means everywhere, which is always right. A hook put on a node itself
(``Node.register_prehook``), not on a tensor, is not seen.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

__all__ = ["Support", "probe", "support_of"]


@dataclass(frozen=True)
class Support:
    """What is known about the node below: its bits (None: they are the spikes), and who may look on."""

    bits: Tensor | None
    watched: tuple[tuple[Any, "OrderedDict[int, Any]"], ...]
    """Weak references to the tensors on the way, and the hooks that anybody puts on them."""

    def unseen(self) -> bool:
        """Whether, in the backward that runs now, only the node below gets this gradient."""
        for tensor, hooks in self.watched:
            there = tensor()
            if hooks or (there is not None and there.retains_grad):
                return False
        return bool(torch._C._will_engine_execute_node(_probe_node()))


_PROBE = torch.zeros((), requires_grad=True)


def probe() -> Tensor:
    """A leaf that never gets a gradient, given to a layer's node as one more input.

    The engine executes its node in a plain ``backward()`` only: where gradients of chosen tensors are asked
    for (``torch.autograd.grad``, ``inputs=``), any of them may be one that would be left out.
    """
    return _PROBE


def _probe_node() -> Any:
    return torch.autograd.graph.get_gradient_edge(_PROBE).node


def support_of(tensor: Tensor) -> Support | None:
    """What is known of the spiking layer that `tensor`, or what it is a view of, came from."""
    base = tensor if tensor._base is None else tensor._base
    node = base.grad_fn
    if node is None or not hasattr(node, "support") or not tensor.is_contiguous() or not base.is_contiguous():
        return None
    above = tensor.grad_fn
    if above is not node:
        one_view = (
            above is not None and above.name() == "ViewBackward0" and above.next_functions[0][0] is node
        )
        if not one_view or tensor.numel() != base.numel():
            return None
    if node.support is None:
        return None
    program = getattr(node, "program", None)
    is_spikes = program is not None and _emits(program.step.nexts[-1], program.plan.support)
    if not is_spikes and (tensor.shape[-1] % 64 or base[0].numel() % 64):  # whole words of bits only
        return None
    on_the_way = (tensor,) if base is tensor else (tensor, base)
    return Support(None if is_spikes else node.support, tuple((ref(t), _hooks(t)) for t in on_the_way))


def _emits(emitted: Any, support: Any) -> bool:
    """Whether what a step emits is 1 exactly where its gradient can matter."""
    return bool(emitted.word == "to_float" and emitted.args == (support,))


def _hooks(tensor: Tensor) -> "OrderedDict[int, Any]":
    """The dictionary that every hook put on `tensor`, now or later, enters."""
    if tensor._backward_hooks is None:
        tensor.register_hook(lambda grad: None).remove()  # type: ignore[no-untyped-call] # torch leaves it so
    hooks = tensor._backward_hooks
    assert isinstance(hooks, OrderedDict)
    return hooks
