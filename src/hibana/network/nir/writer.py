"""From a network to a NIR graph: traced with torch.fx, batch normalisation folded, shapes followed."""

import io
import os
import re
import warnings
from dataclasses import fields
from inspect import signature
from operator import add, iadd
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import fx, nn

from hibana.network.fold import folded_calls
from hibana.network.nir.node_of import lost_in_training, to_node
from hibana.network.nir.nodes import Node, Scale, Shape, output_shape
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.over_steps import FlattenOverSteps
from hibana.runtime import files

__all__ = ["write"]


def write(
    net: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    dt: float | None = None,
    input_shape: Shape | None = None,
) -> Any:
    """`net` as a NIR graph, and into a file if `path` is given.

    Batch normalisation is folded into the layer before it. What matters only for training (a surrogate, a
    dropout) is left out with a warning that names the layers.

    Args:
        net: a network over ``[T, batch, ...]`` of hibana and torch.nn layers, additions between them
            included.
        path: the file to write.
        dt: seconds per time step, by which time constants are written in seconds, and which is noted in the
            graph; that of the graph `net` was read from, else 1e-4.
        input_shape: the shape of one sample at one step; that of the graph `net` was read from, else that
            which the first layer takes, if it is linear.

    Returns:
        The ``nir.NIRGraph``.

    Raises:
        ValueError: naming the layer, if NIR cannot say what it does: a soft reset, a refractory period, a
            max-pooling; or if the shape of the input is not known.

    Source: Pedersen et al. (2024), *Neuromorphic intermediate representation*.
    """
    noted = net.meta if isinstance(net, fx.GraphModule) else {}
    dt = next(x for x in (dt, noted.get("dt"), 1e-4) if x is not None)
    if not (np.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be positive and finite seconds, got {dt!r}")
    folded, calls = folded_calls(net, Scale)
    shape = input_shape or noted.get("input_shape") or _taken_by_the_first(folded, calls)
    nodes, edges = _Walk(folded, calls, dt, noted.get("nodes", {})).graph(tuple(shape))
    graph = _graph({name: _nir_node(node, name) for name, node in nodes.items()}, edges, {"dt": dt})
    if path is not None:
        contents = io.BytesIO()
        nir.write(contents, graph)
        files.write(Path(path), contents.getvalue())
    return graph


def _taken_by_the_first(net: nn.Module, calls: fx.Graph) -> Shape:
    first = next((node for node in calls.nodes if node.op == "call_module"), None)
    layer = None if first is None else net.get_submodule(str(first.target))
    if isinstance(layer, nn.Linear | DelayedLinear):
        return (layer.in_features,)
    raise ValueError("input_shape must be given, the shape of one sample, unless the first layer is linear")


class _Walk:
    """Walks over a traced network once and makes its nodes and edges; additions become several edges."""

    def __init__(self, net: nn.Module, calls: fx.Graph, dt: float, names: dict[str, str]) -> None:
        self.net, self.calls, self.dt, self.names = net, calls, dt, names
        self.nodes: dict[str, Node] = {}
        self.edges: list[tuple[str, str]] = []
        self.shapes: dict[str, Shape] = {}
        self.sources: dict[fx.Node, list[str]] = {}

    def graph(self, shape: Shape) -> tuple[dict[str, Node], list[tuple[str, str]]]:
        lost = []
        for line in self.calls.nodes:
            where = f"layer {line.target if line.op == 'call_module' else line.name!r}"
            try:
                self.line(line, shape)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if line.op == "call_module" and (what := lost_in_training(self.module(line))):
                lost.append(f"{line.target} ({what})")
        if lost:
            warnings.warn(f"NIR cannot say what matters only in training: {'; '.join(lost)}", stacklevel=3)
        return self.nodes, self.edges

    def module(self, line: fx.Node) -> nn.Module:
        return self.net.get_submodule(str(line.target))

    def line(self, line: fx.Node, shape: Shape) -> None:
        if line.op == "placeholder":
            self.sources[line] = [self.put("input", Node("Input", {"shape": np.array(shape)}), [], shape)]
        elif line.op == "output":
            if not isinstance(line.args[0], fx.Node):
                raise ValueError("a network must return one tensor to be written")
            sources = self.sources[line.args[0]]
            shape = self.shapes[sources[0]]
            self.put("output", Node("Output", {"shape": np.array(shape)}), sources, shape)
        elif line.op != "call_module" and line.target in (add, iadd, torch.add, "add", "add_"):
            self.sources[line] = self.added(line)
        else:
            self.layer(line)

    def layer(self, line: fx.Node) -> None:
        called = getattr(line.target, "__name__", line.target)
        source, *_ = *line.args, *line.kwargs.values(), None
        if not isinstance(source, fx.Node):
            what = f"{called} of something that is no value of the network"
            raise ValueError(f"{what} cannot be written")  # noqa: TRY004 - as the others here
        if line.meta.get("normalised") and line.meta["leading"] != 1:
            raise ValueError("the batch normalisation after it takes samples for channels; use EachStep")
        sources = self.sources[source]
        shape = self.shapes[sources[0]]
        flat = _flattened(line, self.module(line) if line.op == "call_module" else None)
        if flat is not None:
            node: Node | None = Node("Flatten", _without(flat, line.meta["leading"], shape))
        elif line.op == "call_module":
            node = to_node(self.module(line), shape, self.dt)
        else:
            raise ValueError(f"NIR has no node for {called}")
        name = line.name
        if line.op == "call_module":
            name = self.names.get(str(line.target), str(line.target))
        self.sources[line] = sources if node is None else [self.put(name, node, sources, shape)]

    def added(self, line: fx.Node) -> list[str]:
        both = [self.sources[arg] for arg in line.args if isinstance(arg, fx.Node)]
        if len(both) != 2 or len(line.args) != 2:
            raise ValueError(f"only two values of the network can be added, got {line.args}")
        sources = both[0] + both[1]
        if len(set(sources)) != len(sources):
            raise ValueError("the same value is added twice; NIR has no such edge")
        if len({self.shapes[source] for source in sources}) != 1:
            raise ValueError(f"adds different shapes: { ({s: self.shapes[s] for s in sources}) }")
        return sources

    def put(self, name: str, node: Node, sources: list[str], shape: Shape) -> str:
        name = re.sub(r"[/\0]|^\.?$", "_", name)  # HDF5 takes these for paths
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self.shapes[name] = output_shape(node, shape)
        if node.type == "Flatten":
            node.fields["input_type"] = {"input": np.array(shape)}
        self.edges += [(source, name) for source in sources]
        return name


def _flattened(line: fx.Node, module: nn.Module | None) -> tuple[int, int] | None:
    """The dimensions that `line` flattens, if that is what it does."""
    if isinstance(module, nn.Flatten):
        over_steps = isinstance(module, FlattenOverSteps) and (module.start_dim, module.end_dim) == (1, -1)
        return 2 if over_steps else module.start_dim, module.end_dim
    if line.op == "call_module" or line.target not in (torch.flatten, "flatten"):
        return None
    named: Any = dict(zip(("start_dim", "end_dim"), line.args[1:], strict=False)) | line.kwargs
    return named.get("start_dim", 0), named.get("end_dim", -1)


def _without(ends: tuple[int, int], leading: int, shape: Shape) -> dict[str, int]:
    """`ends` counted without the dimensions of time and batch."""
    start, end = (n + len(shape) if n < 0 else n - leading for n in ends)
    if start < 0 or end < start:
        raise ValueError(f"flattens dimensions {ends}, time or batch among them")
    return {"start_dim": start, "end_dim": end}


def _nir_node(node: Node, name: str) -> Any:
    if node.type in ("Input", "Output"):
        return getattr(nir, node.type)(node.fields["shape"])
    if node.type == "NIRGraph":
        within = {key: _nir_node(inner, name) for key, inner in node.fields["nodes"].items()}
        return _graph(within, node.fields["edges"], {})
    kind = getattr(nir, node.type)
    known = {f.name for f in fields(kind)}
    given = dict(node.fields)
    if "v_reset" in given and "v_reset" not in known and given.pop("v_reset").any():
        raise ValueError(f"layer {name!r}: nir {nir.version} has no reset potential but 0; nir 1.0.5 has")
    return kind(**given, **({"metadata": node.metadata} if node.metadata else {}))


def _graph(nodes: dict[str, Any], edges: list[tuple[str, str]], metadata: dict[str, float]) -> Any:
    """The graph, its shapes as they were found here: nir's own inference knows no kernel but square ones."""
    checked = {"type_check": False} if "type_check" in signature(nir.NIRGraph).parameters else {}
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata, **checked)
