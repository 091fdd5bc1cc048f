"""Compares networks of layers that work per spike with torch's dense layers and the reference loop.

Weights are multiples of 1/64, so sums of spikes are exact in any order and outputs must be equal. Gradients
are sums of other numbers and must be equal up to rounding.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import hibana as hb
from fuzz.contexts import call_in_context, parametrize_weights
from fuzz.differ import Counts, Different
from fuzz.networks import WRITES, Network, build, inputs

__all__ = ["compare"]

_SPARSE = hb.Linear | hb.Conv2d | hb.Window | hb.DelayedLinear
"""Layers whose ``mode`` chooses between work per spike and a dense product."""


def compare(network: Network, counts: Counts) -> None:
    """Runs a case with both networks and counts it.

    Raises:
        Different: if outputs or gradients differ from those of the dense network.
    """
    torch.manual_seed(network.seed)
    if _overwrites_relu(network):
        counts.invalid += 1
        return
    images = any("2d" in kind or kind == "Flatten" for kind in network.layers)
    try:
        dense_net = build(network)
    except RuntimeError:  # the image is too small for a layer
        counts.invalid += 1
        return
    event_net = hb.events.adopt(copy.deepcopy(dense_net))
    for layer in event_net.modules():
        if isinstance(layer, _SPARSE):
            layer.mode = network.mode
    for layer in dense_net.modules():
        if isinstance(layer, _SPARSE):
            layer.mode = "dense"
        if isinstance(layer, hb.OverTime | hb.Recurrent):
            layer.backend = "reference"
    x = inputs(network, images)
    event_net, dense_net = (parametrize_weights(net, network.context) for net in (event_net, dense_net))
    is_single = network.inputs != "double"
    if x.dtype == torch.float64:
        dense_net, event_net = dense_net.double(), event_net.double()
    outcomes = []
    for net in (event_net, dense_net):
        try:
            outcomes.append(_run(net, network, x))
        except Exception as error:
            outcomes.append(error)
    actual, expected = outcomes
    if isinstance(expected, Exception):
        counts.invalid += 1
        return
    counts.compared += 1
    if isinstance(actual, Exception):
        raise Different(f"{type(actual).__name__}: {actual}\n{network}") from actual
    rounding: dict[str, float] = {}
    for name, reference in expected.items():
        value = actual.get(name)
        if name.startswith("output"):
            tolerance = 0.0 if is_single and _has_exact_sums(network) else 1e-5
            _assert_near(value, reference, tolerance, name, network)
            continue
        try:
            _assert_near(value, reference, 2e-4 if is_single else 1e-10, name, network)
        except Different:
            rounding = rounding or (is_single and _rounding_errors(dense_net, network, x, expected)) or {}
            if name not in rounding:
                raise
            _assert_near(value, reference, 2e-4, name, network, 4 * rounding[name])


def _overwrites_relu(network: Network) -> bool:
    """Whether a write through ``.data`` to a flattened view changes what ReLU saved for its backward.

    Flattening returns a view of contiguous images, as from torch's convolution, but not of hibana's.
    """
    kinds = network.layers
    return any(
        change == "data" and place and kinds[place].startswith("Flatten") and kinds[place - 1] == "ReLU"
        for place, change in network.changes.items()
    )


def _has_exact_sums(network: Network) -> bool:
    """Whether all sums are exact in any order, because few layers with weights follow each other."""
    depth = 0
    for kind in network.layers:
        depth = 0 if kind == "IF" else depth + ("Linear" in kind or "2d" in kind)
        if depth > 2 or kind in ("LI", "Recurrent", "Window", "Delayed"):
            return False
    return True


def _rounding_errors(
    dense_net: nn.Sequential, network: Network, x: Tensor, expected: dict[str, Tensor | None]
) -> dict[str, float]:
    """Rounding errors of the dense network's gradients by name: their largest differences from float64.

    They are large if terms of a sum cancel. The result is empty if the spikes differ in float64.
    """
    exact = _run(copy.deepcopy(dense_net).double(), network, x.double())
    if not torch.allclose(exact["output"].float(), expected["output"], rtol=1e-4, atol=1e-5, equal_nan=True):
        return {}
    pairs = [(name, exact[name], gradient) for name, gradient in expected.items() if gradient is not None]
    return {
        name: float((gradient - exact_value).abs().max())
        for name, exact_value, gradient in pairs
        if exact_value is not None and exact_value.shape == gradient.shape and exact_value.numel()
    }


def _assert_near(
    value: Tensor | None,
    expected: Tensor | None,
    tolerance: float,
    name: str,
    network: Network,
    rounding: float = 0.0,
) -> None:
    """Raises `Different` unless `value` equals `expected` up to `tolerance` of its largest number."""
    if expected is None:
        if value is not None and value.any():
            raise Different(f"{name}: a gradient that the dense network does not have\n{network}")
        return
    if value is None or value.shape != expected.shape or value.dtype != expected.dtype:
        shape = None if value is None else (value.shape, value.dtype)
        raise Different(f"{name}: {shape}, not {expected.shape}\n{network}")
    if not expected.numel():
        return
    scale = max(1e-30, expected.abs().nan_to_num(0, 0, 0).max().item())
    if not torch.allclose(value, expected, rtol=tolerance, atol=tolerance * scale + rounding, equal_nan=True):
        error = (value - expected).abs().max().item()
        raise Different(f"{name}: off by {error:.3g} where the largest is {scale:.3g}\n{network}")


def _run(net: nn.Sequential, network: Network, x: Tensor) -> dict[str, Tensor | None]:
    """The output, and the gradients of inputs, parameters and observed tensors, by name."""
    torch.manual_seed(network.seed + 1)
    x = x.detach().requires_grad_()
    h, results, extra_losses, observed, views, last_write = x, {}, [], [], set(), -1
    if network.use == "with state":
        h, state = hb.run(net, x)
        for name, values in state.items():
            results |= {f"output: last {i} of {name}": last.detach() for i, last in enumerate(values)}
        extra_losses += [values[0].square().sum() for values in state.values()]
    else:
        for place, layer in enumerate(net):
            h = call_in_context(layer, h, network.context)
            views |= {place} if h._is_view() else set()
            change = network.changes.get(place)
            # torch refuses writes to a view that a reentrant checkpoint returns, as of torch's linear layer
            is_refused = isinstance(layer, nn.Linear) and network.context == "reentrant checkpoint"
            change = None if change in WRITES and is_refused else change
            last_write = place if change in WRITES else last_write
            _change(h, change, network.seed, place, results, extra_losses, observed)
    results["output"] = h.detach()
    # autograd has no gradient of a view that is written through later; hibana's layers return no views
    observed = [(place, tensor) for place, tensor in observed if place > last_write or not tensor._is_view()]
    for place in views:
        if place < last_write:
            results.pop(f"hooked gradient of layer {place}", None)
    loss = sum(extra_losses, _loss(h, network))
    if loss.requires_grad:
        leaves = [x, *net.parameters()]
        tensors = [output for _, output in observed]
        if tensors:
            grads = torch.autograd.grad(loss, [*leaves, *tensors], allow_unused=True)
        else:
            loss.backward()
            grads = [leaf.grad for leaf in leaves]
        names = ["gradient of the input", *(f"gradient of {name}" for name, _ in net.named_parameters())]
        names += [f"gradient of layer {place}" for place, _ in observed]
        results |= dict(zip(names, grads, strict=True))
    for name, result in list(results.items()):
        if callable(result):
            results[name] = result()
    return results


def _change(
    h: Tensor,
    change: str | None,
    seed: int,
    place: int,
    results: dict[str, Any],
    extra_losses: list[Tensor],
    observed: list[Any],
) -> None:
    """Writes to `h`, observes its gradient in `results` or adds a loss of `h`, as `change` says."""
    generator = torch.Generator().manual_seed(seed + place)
    mask = (torch.rand(h.shape, generator=generator) < 0.5).to(h)
    name = f"hooked gradient of layer {place}"
    if change in WRITES and h.grad_fn is not None and h.grad_fn.name().startswith("Expand"):
        return  # torch refuses a write to an expanded tensor
    with torch.no_grad():
        match change:
            case "mul_":
                h.mul_(mask)
            case "zero_":
                h.zero_()
            case "masked_fill_":
                h.masked_fill_(mask == 0, 0.0)
            case "index":
                h[-1] = 0.0
            case "detach":
                h.detach().mul_(mask)
            case "view":
                h.view(h.shape).mul_(mask)
            case "one":
                h.masked_fill_(mask == 0, 1.0)
            case "minus zero":
                h.mul_(-0.0)
            case "data":
                h.data.mul_(mask)
    if change in ("total", "total and hook"):
        extra_losses.append(0.125 * h.sum())
    match change:
        case "hook" | "total and hook" if h.requires_grad:
            h.register_hook(lambda grad: results.__setitem__(name, grad.clone()))
        case "retain" if h.requires_grad:
            h.retain_grad()
            results[name] = lambda: h.grad
        case "detached branch":
            extra_losses.append(h.detach().square().sum())
        case "second use":
            extra_losses.append((h * mask).sum())
        case "asked for" if h.requires_grad:
            observed.append((place, h))


def _loss(out: Tensor, network: Network) -> Tensor:
    generator = torch.Generator().manual_seed(network.seed + 5)
    weights = ((torch.rand(out.shape, generator=generator) - 0.5) * 64).round().to(out) / 64
    match network.use:
        case "last step":
            return (out[-1] * weights[-1]).sum()
        case "one output":
            return out.flatten()[0] * 1.0
        case "some rows":
            return (out * weights * (weights.abs() < 0.05)).sum()
        case "mean over time":
            return out.mean(0).square().sum()
        case "large":
            return (out * weights * 1e6).sum()
    return (out * weights).sum()
