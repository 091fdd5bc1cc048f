"""A network's graph as a table for people: layer, shape, parameters, activity and operations of a step."""

from hibana.network.graph import Network

__all__ = ["table"]

_HEAD = ("layer", "kind", "gives", "parameters", "not zero", "operations", "at these rates")


def table(network: Network) -> str:
    """The layers of `network`, a line each: what one sample and step gives and costs.

    Operations are additions of weights, and arithmetic of neurons; in the last column those of the inputs
    that were not zero on the example.
    """
    rows, at_most, seen = [_HEAD], 0, 0
    for node in network.nodes:
        most, active, _ = node.layer.operations(node, network.dtype)
        at_most, seen = at_most + most, seen + round(active)
        count = sum(p.numel() for p in node.module.parameters()) if node.module is not None else 0
        sides = "x".join(map(str, node.shape))
        numbers = f"{count:,}", f"{node.density:.1%}", f"{most:,}", f"{round(active):,}"
        rows.append((node.name, node.layer.title(node), sides, *numbers))
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
