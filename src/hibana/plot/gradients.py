"""Size of the gradient at each layer and step, recorded from one batch."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hibana.nn.layers import OverTime, Recurrent

__all__ = ["gradient_norms"]


def gradient_norms(
    net: nn.Module,
    objective: Callable[[Any, Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor,
    *,
    of: Literal["outputs", "inputs"] = "outputs",
) -> dict[str, Tensor]:
    """The size of the loss's gradient at each hibana layer of `net` and each step, over batch and neurons.

        n_t = |dL/ds_t|_2   of what the layer emits (``of="outputs"``), as it comes from the layers above
        n_t = |dL/dI_t|_2   of what enters it (``of="inputs"``), through its own state and recurrence too

    The gradients of parameters are neither used nor changed. Whether or not a layer of
    :mod:`hibana.spikes` leaves out gradients that no one uses, these are whole.

    Args:
        net: any module that holds hibana layers; it is called once, in the mode that it is in.
        objective: ``(outputs, labels) -> loss``, a scalar.
        inputs: what `net` takes, time first.
        labels: what `objective` takes.
        of: where to look.

    Returns:
        ``[T]`` for each layer, by its name in `net`, in the order of the calls; the second call of a layer
        is ``name#1``, and so on.

    Raises:
        ValueError: if `net` calls no hibana layer, or `of` is neither.

    >>> import hibana as hb
    >>> net = nn.Sequential(nn.Linear(3, 8), hb.IF(), nn.Linear(8, 2), hb.LI())
    >>> objective = lambda outputs, labels: nn.functional.cross_entropy(outputs.mean(0), labels)
    >>> norms = gradient_norms(net, objective, torch.rand(5, 4, 3), torch.tensor([0, 1, 1, 0]))
    >>> {name: norm.shape for name, norm in norms.items()}
    {'1': torch.Size([5]), '3': torch.Size([5])}
    """
    if of not in ("outputs", "inputs"):
        raise ValueError(f"of must be 'outputs' or 'inputs', got {of!r}")
    recorded: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, named: Any, outputs: Any) -> None:
            if of == "inputs":
                tensor = args[0] if args else named["inputs"]
            else:
                tensor = outputs[0] if isinstance(outputs, tuple) else outputs
            calls = sum(key.partition("#")[0] == name for key in recorded)
            recorded[name if calls == 0 else f"{name}#{calls}"] = tensor

        return hook

    hooks = [
        module.register_forward_hook(keep(name), with_kwargs=True)
        for name, module in net.named_modules()
        if isinstance(module, OverTime | Recurrent)
    ]
    try:
        with torch.enable_grad():
            loss = objective(net(inputs.detach().requires_grad_(inputs.is_floating_point())), labels)
    finally:
        for hook in hooks:
            hook.remove()
    if not recorded:
        raise ValueError("net must call at least one layer of hibana (OverTime, IF, ..., Recurrent)")
    for tensor in recorded.values():
        tensor.retain_grad()  # says that someone looks: nothing is left out, or summed over time, on the way
    grads = torch.autograd.grad(loss, list(recorded.values()), allow_unused=True)
    return {
        name: tensor.new_zeros(len(tensor)) if grad is None else grad.flatten(1).norm(dim=1)
        for (name, tensor), grad in zip(recorded.items(), grads, strict=True)
    }
