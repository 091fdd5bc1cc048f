"""Makes hibana's layers leaves of a symbolic trace by ``torch.fx``, as torch's own layers are."""

from typing import Any

from torch import fx, nn


def is_name(inputs: Any) -> bool:
    """Whether `inputs` only stand for a tensor, in a graph that is being written."""
    return isinstance(inputs, fx.Proxy)


def as_leaf(module: nn.Module, inputs: Any, *rest: Any, **named: Any) -> Any:
    """The call of `module` on `inputs` that :func:`is_name` says are none.

    ``torch.fx.symbolic_trace`` takes modules of torch's own for leaves and goes into all others, where what a
    layer of hibana's does depends on what its input is.
    """
    path = inputs.tracer.path_of_module(module)
    return inputs.tracer.create_proxy("call_module", path, (inputs, *rest), named)
