"""From the node graph of a network to a NIR graph."""

import io
import math
import os
import re
import warnings
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, cast

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn

from hibana.network.graph import Network
from hibana.network.layers import LAYERS, kind_of
from hibana.network.nir_node import NirNode
from hibana.network.node import Node, Shape
from hibana.network.reader import read
from hibana.runtime import files

__all__ = ["write"]


def write(
    net: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    dt: float | None = None,
    input_shape: Shape | None = None,
) -> Any:
    """`net` as a NIR graph, which is also written to `path` if that is not None.

    Layers that NIR does not have are written as nodes that compute the same. Reset by subtraction becomes an
    integrator (``LI``, ``I``), a ``Threshold``, and a ``Scale`` by minus the threshold from there back to the
    integrator. An initial potential becomes a shift of threshold and reset. Max-pooling of spikes becomes
    their sum and neurons without memory. Batch normalization is folded into the layer before it. Settings
    that matter only for training (a surrogate, a dropout) are left out with a warning that names the layers.

    Args:
        net: a network over ``[T, batch, ...]`` of layers of hibana and torch.nn, and additions.
        path: the file to write.
        dt: seconds per time step, for time constants in seconds and for the graph's metadata; None for the
            ``dt`` of the graph that `net` was read from, else 1e-4.
        input_shape: the shape of one sample at one step; None for that of the graph that `net` was read from,
            else that of the input of the first layer, if it is linear.

    Returns:
        The ``nir.NIRGraph``.

    Raises:
        ValueError: naming the layer, if NIR has no form of it, such as a refractory period; or if no shape of
            the input is available.

    Source: Pedersen et al. (2024), *Neuromorphic intermediate representation*.
    """
    meta = net.meta if isinstance(net, fx.GraphModule) else {}
    dt = next(x for x in (dt, meta.get("dt"), 1e-4) if x is not None)
    if not (np.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be positive and finite seconds, got {dt!r}")
    example = _example(net, input_shape or meta.get("input_shape"))
    try:
        network = read(net, example, shares_state=True)
        nodes, edges = _Graph(meta.get("nodes", {}), dt).add(network)
    except RuntimeError as error:  # Unsupported, or an error of torch, whose notes name the layer
        raise ValueError(": ".join([*getattr(error, "__notes__", ()), str(error)])) from error
    layers = [(name, layer, kind_of(layer)) for name, layer in network.net.named_modules()]
    lost = [
        f"{name} ({setting})" for name, layer, kind in layers if kind and (setting := kind.lost_in_nir(layer))
    ]
    if lost:
        warnings.warn(f"NIR has no field for training settings: {'; '.join(lost)}", stacklevel=2)
    graph = _graph({name: _nir_node(node, name) for name, node in nodes.items()}, edges, {"dt": dt})
    if path is not None:
        contents = io.BytesIO()
        nir.write(contents, graph)
        files.write(Path(path), contents.getvalue())
    return graph


def _example(net: nn.Module, shape: Shape | None) -> Tensor:
    """Two steps of a sample of `shape`, or of the input shape of the first layer of `net`."""
    first = next((module for module in net.modules() if kind_of(module) is not None), None)
    if shape is None and hasattr(first, "in_features"):
        shape = (int(cast(Any, first).in_features),)
    if shape is None:
        raise ValueError(
            "input_shape must be given, the shape of one sample, as the first layer is not linear"
        )
    weight = next((p for p in net.parameters() if p.is_floating_point()), None)
    dtype, device = (torch.float32, "cpu") if weight is None else (weight.dtype, weight.device)
    return torch.ones(2, 1, *shape, dtype=dtype, device=device)


class _Graph:
    """Builds the nodes and edges of a NIR graph. An addition becomes several edges to one node.

    `names` has the NIR names of layers whose names differ, `dt` is in seconds per step.
    """

    def __init__(self, names: dict[str, str], dt: float) -> None:
        self.names, self.dt = names, dt
        self.nodes: dict[str, NirNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[Node, list[str]] = {}
        """The NIR nodes whose sum is the value of a node."""

    def add(self, network: Network) -> tuple[dict[str, NirNode], list[tuple[str, str]]]:
        """Adds `network`, and returns all nodes and edges."""
        input_node = NirNode("Input", {"shape": np.array(network.input.shape)})
        self.sources[network.input] = [self._put("input", input_node, [])]
        for node in network.nodes[1:]:
            sources = [
                name
                for source, shape in zip(node.inputs, node.input_shapes, strict=True)
                for name in self._reshaped(source, shape, node.name)
            ]
            if node.kind == "sum":
                if len({*sources}) != len(sources):
                    raise ValueError(f"layer {node.name!r}: adds a value to itself; NIR has no such edge")
                self.sources[node] = sources
                continue
            try:
                nir_node = LAYERS[node.kind].to_nir(node, self.dt)
            except ValueError as error:
                raise ValueError(f"layer {node.name!r}: {error}") from error
            for part in nir_node if isinstance(nir_node, tuple) else (nir_node,):
                sources = [self._put(self.names.get(node.name, node.name), part, sources)]
            self.sources[node] = sources
        shape = np.array(network.output_shape)
        last = self._reshaped(network.output, network.output_shape, "output")
        self._put("output", NirNode("Output", {"shape": shape}), last)
        return self.nodes, self.edges

    def _reshaped(self, source: Node, shape: Shape, user: str) -> list[str]:
        """The NIR nodes whose sum is `source` in `shape`; adds a Flatten before `user` if necessary."""
        if shape == source.shape:
            return self.sources[source]
        dims = range(len(source.shape))
        ends = ((start, end) for start in dims for end in dims[start + 1 :])
        for start, end in ends:
            joined = math.prod(source.shape[start : end + 1])
            if (*source.shape[:start], joined, *source.shape[end + 1 :]) == shape:
                fields = {"start_dim": start, "end_dim": end, "input_type": {"input": np.array(source.shape)}}
                return [self._put(f"{user}_flatten", NirNode("Flatten", fields), self.sources[source])]
        raise ValueError(f"layer {user!r}: NIR flattens, but has no reshape of {source.shape} to {shape}")

    def _put(self, name: str, node: NirNode, sources: list[str]) -> str:
        """Adds `node` with edges from `sources`, and returns its name, which is similar to `name`."""
        name = re.sub(r"[/\0]|^\.?$", "_", name)  # HDF5 takes these for paths
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name


def _nir_node(node: NirNode, name: str) -> Any:
    """`node` as an object of the nir package; `name` is for messages."""
    if node.type in ("Input", "Output"):
        return getattr(nir, node.type)(node.fields["shape"])
    if node.type == "NIRGraph":
        nodes = {key: _nir_node(part, name) for key, part in node.fields["nodes"].items()}
        return _graph(nodes, node.fields["edges"], {})
    kind, values = getattr(nir, node.type), dict(node.fields)
    if (
        "v_reset" in values
        and "v_reset" not in {f.name for f in fields(kind)}
        and values.pop("v_reset").any()
    ):
        raise ValueError(f"layer {name!r}: nir {nir.version} has no reset potential but 0; nir 1.0.5 has")
    return kind(**values, **({"metadata": node.metadata} if node.metadata else {}))


def _graph(nodes: dict[str, Any], edges: list[tuple[str, str]], metadata: dict[str, float]) -> Any:
    """A ``nir.NIRGraph`` without nir's inference of shapes, which supports square kernels alone."""
    settings = {"type_check": False} if "type_check" in signature(nir.NIRGraph).parameters else {}
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata, **settings)
