"""From a NIR graph to a network: flattens nested graphs, checks shapes, and orders the nodes."""

import math
import os
import warnings
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from operator import add
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from hibana.network.fold import layer_name
from hibana.network.layers import LAYERS, LayerKind
from hibana.network.layers.nir_neurons import with_feedback
from hibana.network.nir.file import load
from hibana.network.nir_node import NirNode as Node
from hibana.network.node import Shape
from hibana.nn.window import LooksBack

__all__ = ["read"]

PORTS = ("Input", "Output")
LINEAR, NEURONS = LAYERS["linear"].nir_types, LAYERS["neurons"].nir_types


def read(source: Any, *, dt: float | None = None, max_bytes: int = 2**31) -> fx.GraphModule:
    """The network that a NIR graph describes, over ``[T, batch, ...]``, starting at rest.

    Args:
        source: the path of a NIR file, or a ``nir.NIRGraph``.
        dt: seconds per time step; ``None`` for the metadata ``dt`` of the graph.
        max_bytes: the most memory that the file's arrays may take, or for one sample the output of one layer
            or the past input that it stores.

    Returns:
        A module whose layers have the names of the nodes, or similar names if no layer can have them
        (``forward``, ``a"b``). Its `meta` holds ``input_shape``, ``dt`` and, if names differ, the names of
        the nodes in ``nodes``; :func:`write` uses all three.

    Raises:
        TypeError: if `source` is neither a path nor a graph.
        ValueError: naming the node, if the file is damaged or too large, if hibana has no layer for a node,
            if shapes do not fit, or if a cycle contains no neuron.

    Source: Pedersen et al. (2024), *Neuromorphic intermediate representation: a unified instruction set for
    interoperable brain-inspired computing*.
    """
    if isinstance(source, str | os.PathLike):
        content = load(source, max_bytes)
    elif hasattr(source, "nodes") and hasattr(source, "edges"):
        content = source.to_dict()
    else:
        raise TypeError(f"source must be a path or a nir.NIRGraph, got {type(source).__name__}")
    graph = _Graph()
    ports = graph.add(content)
    metadata = content.get("metadata")
    if dt is None and isinstance(metadata, dict):
        dt = metadata.get("dt")
    if dt is not None:
        if np.ndim(dt) or not isinstance(dt, int | float | np.number) or not (np.isfinite(dt) and dt > 0):
            raise ValueError(f"dt must be positive and finite seconds, got {dt!r}")
        dt = float(dt)
    graph.remove_inner_ports(ports)
    graph.merge_subtracting_neurons()
    graph.remove_feedback()
    return _network(graph, ports, dt, max_bytes)


@dataclass
class _Graph:
    """All nodes of a graph and of the graphs in it, by path, and the paths of the nodes that each reads."""

    nodes: dict[str, Node] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    feedback: dict[str, Node] = field(default_factory=dict)
    """The linear node from a neuron back to itself, by the neuron's path."""

    def add(self, content: dict[str, Any], prefix: str = "") -> tuple[str, ...]:
        """Adds the graph `content`, and returns the paths of its input and output.

        The `prefix` of the paths of its nodes is ``"PATH."``, or empty for the outermost graph.
        """
        where = f"graph {prefix[:-1]}" if prefix else "the graph"
        nodes, edges = content.get("nodes"), np.asarray(content.get("edges"), object)
        if not isinstance(nodes, dict) or "edges" not in content:
            raise ValueError(f"{where} has no nodes and edges, so it is not a NIR graph")
        if edges.size and (edges.ndim != 2 or edges.shape[1] != 2):
            raise ValueError(f"{where} must have pairs of names as edges, got {content['edges']!r}")
        ends = {name: self._add_node(entry, f"{prefix}{name}") for name, entry in nodes.items()}
        for edge in edges.reshape(-1, 2):
            begin, end = (name.decode() if isinstance(name, bytes) else name for name in edge)
            if unknown := [name for name in (begin, end) if name not in nodes]:
                raise ValueError(f"{where} has an edge between nodes it does not have: {unknown}")
            (target, _), (_, source) = ends[end], ends[begin]
            if source in self.sources[target]:
                raise ValueError(f"{where} has the edge {begin} -> {end} twice")
            self.sources[target].append(source)
        ports = []
        for kind in PORTS:
            names = [name for name, entry in nodes.items() if entry["type"] == kind]
            if len(names) != 1:
                raise ValueError(f"{where} must have one {kind} node, has {len(names)}: {names}")
            ports.append(f"{prefix}{names[0]}")
        return tuple(ports)

    def _add_node(self, entry: Any, path: str) -> tuple[str, ...]:
        """Adds the node, or the graph, `entry`; returns the paths of the nodes at its input and output."""
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise ValueError(f"node {path!r} has no type")  # noqa: TRY004 - what is wrong is the file
        if entry["type"] == "NIRGraph":
            return self.add(entry, f"{path}.")
        metadata = entry.get("metadata")
        fields = {key: value for key, value in entry.items() if key not in ("type", "metadata")}
        self.nodes[path] = Node(entry["type"], fields, metadata if isinstance(metadata, dict) else {})
        self.sources[path] = []
        return path, path

    def remove_inner_ports(self, ports: tuple[str, ...]) -> None:
        """Removes all ports, which pass the sum of their inputs on, except those of the outermost graph."""
        for name in [n for n, node in self.nodes.items() if node.type in PORTS and n not in ports]:
            targets = [target for target, sources in self.sources.items() if name in sources]
            if not targets or not self.sources[name] or name in targets:
                continue  # a dead end, or a cycle of ports
            del self.nodes[name]
            sources = self.sources.pop(name)
            for target in targets:
                place = self.sources[target].index(name)
                self.sources[target][place : place + 1] = sources

    def merge_subtracting_neurons(self) -> None:
        """Merges each loop of an integrator, a ``Threshold`` and a ``Scale`` into one node of neurons.

        Its type is ``IF`` or ``LIF``, and its field ``subtracted`` is what the scale subtracts per spike.
        """
        targets = self._targets()
        for name, threshold in [item for item in self.nodes.items() if item[1].type == "Threshold"]:
            integrators = [n for n in self.sources[name] if self.nodes[n].type in ("I", "LI")]
            scales = [n for n in targets[name] if self.nodes[n].type == "Scale" and targets[n] == integrators]
            if not (self.sources[name] == integrators and len(integrators) == len(scales) == 1):
                continue
            (integrator,), (scale,) = integrators, scales
            if targets[integrator] != [name] or self.sources[scale] != [name]:
                continue
            node = self.nodes[integrator]
            subtracted = -np.asarray(self.nodes.pop(scale).fields["scale"])
            spiking = {"v_threshold": threshold.fields["threshold"], "subtracted": subtracted}
            self.nodes[integrator] = Node(f"{node.type}F", node.fields | spiking, node.metadata)
            self.sources[integrator].remove(scale)
            del self.nodes[name], self.sources[name], self.sources[scale]
            for sources in self.sources.values():
                sources[:] = [integrator if source == name else source for source in sources]

    def _targets(self) -> dict[str, list[str]]:
        """The paths of the nodes that read each node."""
        targets: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, sources in self.sources.items():
            for source in sources:
                targets[source].append(name)
        return targets

    def remove_feedback(self) -> None:
        """Moves each linear node whose only source and only target are the same neuron to `feedback`."""
        targets = self._targets()
        for name in [name for name, node in self.nodes.items() if node.type in LINEAR]:
            neuron = self.sources[name][0] if self.sources[name] else name
            is_loop = self.sources[name] == targets[name] == [neuron] and neuron != name
            if is_loop and self.nodes[neuron].type in NEURONS and neuron not in self.feedback:
                self.feedback[neuron] = self.nodes.pop(name)
                del self.sources[name]
                self.sources[neuron].remove(name)

    def ordered(self) -> list[str]:
        """The paths of the nodes, each after those that it reads."""
        try:
            return [*TopologicalSorter(self.sources).static_order()]
        except CycleError as error:
            cycle = error.args[1]
            problem = f"is more than one neuron layer with one {' or '.join(LINEAR)} back to itself"
            if not any(self.nodes[name].type in NEURONS for name in cycle):
                problem = "holds no neuron, so nothing delays it"
            raise ValueError(f"the cycle {' -> '.join(cycle)} {problem}") from error


def _network(graph: _Graph, ports: tuple[str, ...], dt: float | None, max_bytes: int) -> fx.GraphModule:
    """The network that runs `graph` between its `ports`, with `dt` seconds per step."""
    order = graph.ordered()
    begin, end = ports
    layers: dict[str, nn.Module] = {}
    shapes: dict[str, Shape] = {begin: _input_shape(graph.nodes[begin], begin)}
    renamed: dict[str, str] = {}
    calls = fx.Graph()
    values = {begin: calls.placeholder("inputs")}
    for name in order:
        node, sources = graph.nodes[name], graph.sources[name]
        if name == begin:
            continue
        if not sources:
            raise ValueError(f"node {name!r} ({node.type}) has no input")
        input_shapes = {source: shapes[source] for source in sources}
        if len(set(input_shapes.values())) != 1:
            raise ValueError(f"node {name!r} ({node.type}) adds inputs of different shapes: {input_shapes}")
        try:
            shape = input_shapes[sources[0]]
            kind = None if node.type in PORTS else _kind(node)
            layer = None if kind is None else _layer(kind, node, shape, dt, graph.feedback.get(name))
            keeps_shape = kind is None or kind.elementwise
            shapes[name] = shape if layer is None or keeps_shape else _output_shape(layer, shape)
            _check_size("one sample of its output", shapes[name], max_bytes)
            if isinstance(layer, LooksBack):
                _check_size("its stored past input", (layer.reach, *shape), max_bytes)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            problem = f"has no field {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"node {name!r} ({node.type}): {problem}") from error
        value = values[sources[0]]
        for source in sources[1:]:
            value = calls.call_function(add, (value, values[source]))
        if layer is not None:
            # hibana writes recurrent and subtracting neurons as graphs with the name of the layer
            graphs = (name in graph.feedback) + ("subtracted" in node.fields)
            path = name.rsplit(".", graphs)[0]
            layers[key := layer_name(path, layers)] = layer
            if key != path:
                renamed[key] = path
            value = calls.call_module(key, (value,))
        values[name] = value
    calls.output(values[end])
    network = fx.GraphModule(layers, calls, class_name="NIRNetwork")
    network.graph.eliminate_dead_code()
    live = set(network.graph.nodes)
    if dead := [name for name in graph.nodes if values[name] not in live]:
        warnings.warn(f"nodes that lead to no output are left out: {', '.join(dead)}", stacklevel=3)
    network.delete_all_unused_submodules()
    network.recompile()
    network.meta.update(input_shape=shapes[begin], dt=dt, **({"nodes": renamed} if renamed else {}))
    return network


def _kind(node: Node) -> LayerKind:
    """The kind of layer that runs `node`."""
    kind = next((kind for kind in LAYERS.values() if node.type in kind.nir_types), None)
    if kind is None:
        raise ValueError("hibana has no layer for it")
    return kind


def _layer(kind: LayerKind, node: Node, shape: Shape, dt: float | None, feedback: Node | None) -> nn.Module:
    """The layer that runs `node`, recurrent with `feedback`, a linear node from its output to its input."""
    layer = kind.from_nir(node, shape, dt)
    if feedback is None:
        return layer
    linear: Any = LAYERS["linear"].from_nir(feedback, shape, dt)
    if linear.out_features != linear.in_features:
        raise ValueError(f"feedback must have as many outputs as inputs, got {linear}")
    return with_feedback(layer, linear)


def _output_shape(layer: nn.Module, shape: Shape) -> Shape:
    """The shape of one sample of the output of `layer`, computed without allocating it."""
    weights = {name: weight.to("meta") for name, weight in layer.named_parameters()}
    sample = torch.empty(1, 1, *shape, dtype=torch.float32, device="meta")
    return tuple(torch.func.functional_call(layer, weights, (sample,)).shape[2:])


def _input_shape(node: Node, name: str) -> Shape:
    """The shape in the Input node `node`, whose path is `name`."""
    shape = np.asarray(node.fields.get("shape"))
    if shape.ndim != 1 or not np.issubdtype(shape.dtype, np.integer) or (shape < 1).any():
        raise ValueError(f"node {name!r} (Input): shape must be whole numbers above 0, got {shape!r}")
    return tuple(int(n) for n in shape)


def _check_size(name: str, shape: Shape, max_bytes: int) -> None:
    """Raises ValueError if the tensor `name`, of float32 and `shape`, takes more than `max_bytes`."""
    size = 4 * math.prod(shape)
    if size > max_bytes:
        raise ValueError(f"{name}, {shape}, takes {size:,} bytes; max_bytes is {max_bytes:,}")
