"""Networks whose layers work per spike, beside the dense layers of torch above the reference loop.

Weights lie on a grid of 1/64, so that sums of spikes are exact in any order and outputs are equal to the
last bit; gradients are sums of other numbers, and agree to rounding.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import hibana as hb
from fuzz.contexts import called, parametrized
from fuzz.differ import Counts, Different
from fuzz.networks import WRITES, Network, built, inputs

__all__ = ["compare"]

_SPARSE = hb.Linear | hb.Conv2d | hb.Window | hb.DelayedLinear
"""Layers that add weights per spike, or by their mode multiply densely."""


def compare(network: Network, counts: Counts) -> None:
    """One case.

    Raises:
        Different: if outputs or gradients are not those of the dense twin.
    """
    torch.manual_seed(network.seed)
    if _writes_to_what_is_kept(network):
        counts.invalid += 1
        return
    images = any("2d" in word or word == "Flatten" for word in network.layers)
    try:
        dense = built(network)
    except RuntimeError:  # an image that is too small
        counts.invalid += 1
        return
    sparse = hb.events.adopt(copy.deepcopy(dense))
    for inner in sparse.modules():
        if isinstance(inner, _SPARSE):
            inner.mode = network.mode
    for inner in dense.modules():
        if isinstance(inner, _SPARSE):
            inner.mode = "dense"
        if isinstance(inner, hb.OverTime | hb.Recurrent):
            inner.backend = "reference"
    x = inputs(network, images)
    sparse, dense = parametrized(sparse, network.context), parametrized(dense, network.context)
    single = network.inputs != "double"
    if x.dtype == torch.float64:
        dense, sparse = dense.double(), sparse.double()
    outcomes = []
    for net in (sparse, dense):
        try:
            outcomes.append(_run(net, network, x))
        except Exception as error:
            outcomes.append(error)
    found, wanted = outcomes
    if isinstance(wanted, Exception):
        counts.invalid += 1
        return
    counts.compared += 1
    if isinstance(found, Exception):
        raise Different(f"{type(found).__name__}: {found}\n{network}") from found
    rounded: dict[str, float] = {}
    for name, value in wanted.items():
        got = found.get(name)
        if name.startswith("output"):
            _assert_near(got, value, 0.0 if single and _exact(network) else 1e-5, name, network)
            continue
        try:
            _assert_near(got, value, 2e-4 if single else 1e-10, name, network)
        except Different:
            rounded = rounded or (single and _rounded(dense, network, x, wanted)) or {}
            if name not in rounded:
                raise
            _assert_near(got, value, 2e-4, name, network, 4 * rounded[name])


def _writes_to_what_is_kept(network: Network) -> bool:
    """Whether what ReLU keeps for its backward is written to unseen, where its flattening is a view.

    As it is of images that lie channels first, which torch's convolution gives, and hibana's does not.
    """
    words = network.layers
    return any(
        how == "data" and place and words[place].startswith("Flatten") and words[place - 1] == "ReLU"
        for place, how in network.touched.items()
    )


def _exact(network: Network) -> bool:
    """Whether every sum is of numbers on a grid that is not too fine, and so exact in any order."""
    deep = 0
    for word in network.layers:
        deep = 0 if word == "IF" else deep + ("Linear" in word or "2d" in word)
        if deep > 2 or word in ("LI", "Recurrent", "Window", "Delayed"):
            return False
    return True


def _rounded(
    dense: nn.Sequential, network: Network, x: Tensor, wanted: dict[str, Tensor | None]
) -> dict[str, float]:
    """How far the dense network's own gradients are from what they are in float64: what rounding makes.

    Of sums that mostly cancel that is more than a part of what they come to. Nothing, if float64 makes other
    spikes.
    """
    exact = _run(copy.deepcopy(dense).double(), network, x.double())
    if not torch.allclose(exact["output"].float(), wanted["output"], rtol=1e-4, atol=1e-5, equal_nan=True):
        return {}
    both = [(name, exact[name], value) for name, value in wanted.items() if value is not None]
    return {
        name: float((value - one).abs().max())
        for name, one, value in both
        if one is not None and one.shape == value.shape and one.numel()
    }


def _assert_near(
    got: Tensor | None,
    wanted: Tensor | None,
    tolerance: float,
    name: str,
    network: Network,
    rounding: float = 0.0,
) -> None:
    if wanted is None:
        if got is not None and got.any():
            raise Different(f"{name}: a gradient that the dense network does not have\n{network}")
        return
    if got is None or got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise Different(
            f"{name}: {None if got is None else (got.shape, got.dtype)}, not {wanted.shape}\n{network}"
        )
    if not wanted.numel():
        return
    scale = max(1e-30, wanted.abs().nan_to_num(0, 0, 0).max().item())
    if not torch.allclose(got, wanted, rtol=tolerance, atol=tolerance * scale + rounding, equal_nan=True):
        off = (got - wanted).abs().max().item()
        raise Different(f"{name}: off by {off:.3g} where the largest is {scale:.3g}\n{network}")


def _run(net: nn.Sequential, network: Network, x: Tensor) -> dict[str, Tensor | None]:
    """The output, what was looked at, and every gradient."""
    torch.manual_seed(network.seed + 1)
    x = x.detach().requires_grad_()
    h, results, extra, looked, views, written = x, {}, [], [], set(), -1
    if network.use == "with state":
        h, state = hb.run(net, x)
        for name, values in state.items():
            results |= {f"output: last {i} of {name}": value.detach() for i, value in enumerate(values)}
        extra += [values[0].square().sum() for values in state.values()]
    else:
        for place, layer in enumerate(net):
            h = called(layer, h, network.context)
            views |= {place} if h._is_view() else set()
            how = network.touched.get(place)
            # torch's linear layer returns a view of a contiguous product; torch refuses writes to a view that
            # a reentrant checkpoint returns
            if how in WRITES and isinstance(layer, nn.Linear) and network.context == "reentrant checkpoint":
                how = None
            written = place if how in WRITES else written
            _touch(h, how, network.seed, place, results, extra, looked)
    results["output"] = h.detach()
    # of a view that was written through later autograd gives no gradient; a layer of hibana gives no view
    looked = [(place, seen) for place, seen in looked if place > written or not seen._is_view()]
    for place in views:
        if place < written:
            results.pop(f"seen at layer {place}", None)
    loss = sum(extra, _loss(h, network))
    if loss.requires_grad:
        leaves = [x, *net.parameters()]
        asked = [value for _, value in looked]
        if asked:
            grads = torch.autograd.grad(loss, [*leaves, *asked], allow_unused=True)
        else:
            loss.backward()
            grads = [leaf.grad for leaf in leaves]
        names = ["gradient of the input", *(f"gradient of {name}" for name, _ in net.named_parameters())]
        names += [f"gradient of layer {place}" for place, _ in looked]
        results |= dict(zip(names, grads, strict=True))
    for name, value in list(results.items()):
        if callable(value):
            results[name] = value()
    return results


def _touch(
    h: Tensor,
    how: str | None,
    seed: int,
    place: int,
    results: dict[str, Any],
    extra: list[Tensor],
    looked: list[Any],
) -> None:
    generator = torch.Generator().manual_seed(seed + place)
    mask = (torch.rand(h.shape, generator=generator) < 0.5).to(h)
    name = f"seen at layer {place}"
    if how in WRITES and h.grad_fn is not None and h.grad_fn.name().startswith("Expand"):
        return  # torch refuses a write to an expanded tensor
    with torch.no_grad():
        match how:
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
    if how in ("total", "total and hook"):
        extra.append(0.125 * h.sum())
    match how:
        case "hook" | "total and hook" if h.requires_grad:
            h.register_hook(lambda grad: results.__setitem__(name, grad.clone()))
        case "retain" if h.requires_grad:
            h.retain_grad()
            results[name] = lambda: h.grad
        case "detached branch":
            extra.append(h.detach().square().sum())
        case "second use":
            extra.append((h * mask).sum())
        case "asked for" if h.requires_grad:
            looked.append((place, h))


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
