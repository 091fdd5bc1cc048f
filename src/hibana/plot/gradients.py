"""Norm of the gradient at each layer and step, for one batch."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hibana.nn.layers import OverTime, Recurrent


def gradient_norms(
    net: nn.Module,
    objective: Callable[[Any, Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor,
    *,
    of: Literal["outputs", "inputs"] = "outputs",
) -> dict[str, Tensor]:
    """The norm of the loss's gradient at each hibana layer of `net` and each step, over batch and neurons.

        n_t = |dL/ds_t|_2   at the layer's outputs s (``of="outputs"``), from the layers above
        n_t = |dL/dI_t|_2   at the layer's inputs I (``of="inputs"``), including its own state and recurrence

    The gradients of parameters are neither used nor changed. All gradients are computed, also those that a
    layer of :mod:`hibana.spikes` would skip in training.

    Args:
        net: any module with hibana layers; it is called once, in its current mode.
        objective: ``(outputs, labels) -> loss``, a scalar.
        inputs: inputs of `net`, time first.
        labels: labels for `objective`.
        of: position of the gradient.

    Returns:
        ``[T]`` for each layer, by its name in `net`, in the order of the calls; the second call of a layer
        is ``name#1``, and so on.

    Raises:
        ValueError: if `net` calls no hibana layer, or `of` has another value.

    >>> import hibana as hb
    >>> net = nn.Sequential(nn.Linear(3, 8), hb.IF(), nn.Linear(8, 2), hb.LI())
    >>> objective = lambda outputs, labels: nn.functional.cross_entropy(outputs.mean(0), labels)
    >>> norms = gradient_norms(net, objective, torch.rand(5, 4, 3), torch.tensor([0, 1, 1, 0]))
    >>> {name: norm.shape for name, norm in norms.items()}
    {'1': torch.Size([5]), '3': torch.Size([5])}
    """
    if of not in ("outputs", "inputs"):
        raise ValueError(f"of must be 'outputs' or 'inputs', got {of!r}")
    tensors: dict[str, Tensor] = {}

    def store(name: str, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        """Stores the output or input of a call of the layer `name`; later calls are ``NAME#1`` and so on."""
        if of == "inputs":
            tensor = args[0] if args else kwargs["inputs"]
        else:
            tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        calls = sum(key.partition("#")[0] == name for key in tensors)
        tensors[name if calls == 0 else f"{name}#{calls}"] = tensor

    with ExitStack() as hooks, torch.enable_grad():
        for name, module in net.named_modules():
            if isinstance(module, OverTime | Recurrent):
                hooks.enter_context(module.register_forward_hook(partial(store, name), with_kwargs=True))
        loss = objective(net(inputs.detach().requires_grad_(inputs.is_floating_point())), labels)
    if not tensors:
        raise ValueError("net must call at least one layer of hibana (OverTime, IF, ..., Recurrent)")
    for tensor in tensors.values():
        tensor.retain_grad()  # keeps layers from skipping this gradient or summing it over time
    grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {
        name: tensor.new_zeros(len(tensor)) if grad is None else grad.flatten(1).norm(dim=1)
        for (name, tensor), grad in zip(tensors.items(), grads, strict=True)
    }
