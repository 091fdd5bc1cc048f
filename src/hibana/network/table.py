"""A network's graph as a table for people: layer, shape, parameters, activity and operations of a step."""

from typing import Any

import torch

from hibana.network.graph import WEIGHTED, Network, Node
from hibana.network.neurons import layer
from hibana.network.sliding import image_of, sliding_of

__all__ = ["operations_of", "table", "what"]

_HEAD = ("layer", "kind", "gives", "parameters", "not zero", "operations", "at these rates")


def table(network: Network) -> str:
    """The layers of `network`, a line each: what one sample and step gives and costs.

    Operations are additions of weights, and arithmetic of neurons; in the last column those of the inputs
    that were not zero on the example.
    """
    rows, at_most, seen = [_HEAD], 0, 0
    for node in network.nodes:
        most, active, _ = operations_of(node, network.dtype)
        at_most, seen = at_most + most, seen + round(active)
        count = sum(p.numel() for p in node.module.parameters()) if node.module is not None else 0
        sides = "x".join(map(str, node.shape))
        numbers = f"{count:,}", f"{node.density:.1%}", f"{most:,}", f"{round(active):,}"
        rows.append((node.name, what(node), sides, *numbers))
    count = sum(p.numel() for p in network.net.parameters())
    sides = "x".join(map(str, network.outputs))
    rows.append(("in all", "", sides, f"{count:,}", "", f"{at_most:,}", f"{seen:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))


def operations_of(node: Node, dtype: torch.dtype) -> tuple[int, float, int]:
    """Operations of a step of one sample: at most, at the rates of the example, and products of them."""
    if node.kind in WEIGHTED:
        most = _products(node)
        return most, most * node.inputs[0].density, most
    if node.kind in ("neurons", "delayed recurrent"):
        made = layer(node, 0, torch.arange(node.size, dtype=torch.int64, device="cpu"), dtype)
        matrices = len(made.products) + (node.kind == "delayed recurrent")
        products, own = matrices * node.size**2, made.operations * node.size
        return own + products, own + products * (node.density if made.emits_spikes else 1.0), products
    most = 0 if node.kind in ("input", "delay") else node.size
    if node.kind in ("maximum", "average"):
        most = sliding_of(node).taps * image_of(node.shape)[0]
    return most, most, 0


def _products(node: Node) -> int:
    """How many products the dense layer takes for a step."""
    module: Any = node.module
    (source,) = node.inputs
    if node.kind in ("linear", "delayed"):
        return source.size * node.size
    if node.kind == "window":
        return source.size * int(module.kernel_size * module.out_channels // module.groups)
    return sliding_of(node).taps * int(module.in_channels // module.groups * module.out_channels)


def what(node: Node) -> str:
    """What a layer is, for people."""
    module: Any = node.module
    if node.kind in ("neurons", "delayed recurrent"):
        cell = type(module.cell).__name__.removesuffix("Cell")
        back = {"DelayedRecurrent": "delayed recurrent ", "Recurrent": "recurrent "}
        return back.get(type(module).__name__, "") + cell
    return {"maximum": "max-pooling", "average": "avg-pooling"}.get(node.kind, node.kind)
