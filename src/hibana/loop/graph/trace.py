"""A step to the graph of its pointwise operations, forward and backward.

The cell's ``forward`` and its gradient run on small tensors while a dispatch mode writes down which ATen
operations they come to; this module turns that into a :class:`Step`: values made by
pointwise operations. (``make_fx`` would write down the same graph, but its first use in a process loads over
a second's worth of modules.)

What depends on hyper-parameters alone is set apart (it runs once a call, in PyTorch), and numbers become
numbered constants, so that changing one changes no structure. Nothing here knows about cost, and of devices
only where PyTorch itself computes another thing on them.
"""

import math
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from hibana.cells import Cell
from hibana.loop.graph.aten import translate
from hibana.loop.graph.fingerprint import random_state, surroundings, taken_as_they_are
from hibana.loop.graph.layout import MOVES, PRODUCTS, columns, is_step, moved, rows, step_layout
from hibana.loop.graph.ops import BOOLEAN, COMPARISONS, OPERATIONS, Unsupported

__all__ = [
    "Part",
    "Place",
    "Step",
    "Unsupported",
    "Value",
    "tensors_of",
    "filled",
    "foreign",
    "places_in",
    "shape_class",
    "trace",
]

LARGE = 1 << 24
"""Whole numbers below it are held by every dtype that a kernel computes in."""

_QUOTIENTS = (torch.ops.aten.div.Tensor, torch.ops.aten.div_.Tensor)


@dataclass(frozen=True, eq=False)
class Value:
    """One number (or truth value) per neuron and step.

    `op` is a leaf (``input``, ``previous``, ``gradient``, ``parameter``, ``constant``, ``number``), one of
    ``ops.OPERATIONS``, or ``product``; `data` is a leaf's index, or a ``number`` itself. The
    product of a row of neurons with matrix j is number ``2 j``, that with it transposed ``2 j + 1``. The
    passes (``graph.passes``) put leaves of their own: ``row``, ``bits`` and ``scalar``, by name.
    """

    op: str
    args: tuple["Value", ...] = ()
    data: int | str = 0
    scalar: bool = False
    """A parameter that is one number for all neurons."""

    @property
    def boolean(self) -> bool:
        """A truth value rather than a number."""
        return self.op in BOOLEAN


@dataclass(frozen=True)
class Step:
    """One step of a cell: what it computes, and the gradients of its inputs.

    ``gradient`` leaf i is the gradient of the loss with respect to state i after the step.
    """

    states: tuple[str, ...]
    nexts: tuple[Value, ...]
    grad_input: Value | None
    grad_states: tuple[Value | None, ...]
    grad_sums: tuple[Value, ...]
    """Per neuron; summed over time they are what :attr:`epilogue` takes."""
    constants: tuple[float, ...]
    prologue: Callable[..., tuple[Any, ...]]
    """From the cell's tensors to the ``parameter`` leaves, then the matrices."""
    epilogue: Callable[..., tuple[Tensor | None, ...]]
    """From the cell's tensors, the sums of :attr:`grad_sums` and those of :attr:`outer` to the gradients of
    the tensors."""
    parameters: int
    matrices: int = 0
    outer: tuple[tuple[Value, Value], ...] = ()
    """Pairs of rows of neurons whose outer products, summed over samples and time, gradients of matrices
    are made of."""
    blank: bool = False
    """Whether a gradient is zero whatever it is made of, as that of ``floor``: it does not say of what."""
    any_size: bool = False
    """Whether it is the same step for every size of a dimension that no tensor of the cell has."""


def trace(cell: Cell, shape: torch.Size, dtype: torch.dtype, device: str = "cpu") -> Step:
    """The graph of one step of `cell` on inputs of `shape`, as PyTorch computes it on `device`.

    The step runs on two small shapes. If it comes to the same on both, the size of a dimension that no
    tensor of the cell has does not matter; else it runs once on `shape` itself, without data.

    Raises:
        Unsupported: if the step is not pointwise in operations known here; the message says which
            one it is.
    """
    with ThreadPoolExecutor(1) as clean:  # a thread has no modes, no autocast, and records gradients
        return clean.submit(_trace, cell, shape, dtype, device).result()


def _trace(cell: Cell, shape: torch.Size, dtype: torch.dtype, device: str) -> Step:
    tensors = tensors_of(cell)
    small = [_of_any_size(tensors, shape, size) for size in (2, 3)]
    alone = _copied(cell, tensors)
    graphs, looked, seen = [], False, []
    for one in small:
        drawn = random_state()
        graph, sizes = _joint_graph(alone, tensors, one, dtype, "cpu")
        graphs.append(graph)
        looked = looked or sizes
        seen.append((surroundings(alone), random_state() == drawn))
    if seen[0][0] != seen[1][0]:
        raise Unsupported("the step changes what it holds besides its states, as a counter does")
    if not any(same for _, same in seen):
        raise Unsupported("the step draws random numbers")
    if not looked and str(graphs[0]) == str(graphs[1]):
        return replace(_Reading(cell, tensors, graphs[0], small[0], dtype, device).step(), any_size=True)
    if str(graphs[0]) != str(_joint_graph(alone, tensors, small[0], dtype, "cpu")[0]):
        raise Unsupported("the step is another one at each call")
    graph, _ = _joint_graph(alone, tensors, shape, dtype, "meta")
    return _Reading(cell, tensors, graph, shape, dtype, device).step()


def _copied(cell: Cell, tensors: dict[str, Tensor]) -> Cell:
    """A copy of `cell` with the same tensors, so that a step that changes its cell changes a copy."""
    try:
        same = [*tensors.values(), *taken_as_they_are(cell)]
        return deepcopy(cell, {id(value): value for value in same})
    except Exception:  # what can't be copied, for whatever reason of its own, is read where it is
        return cell


def _of_any_size(tensors: dict[str, Tensor], shape: torch.Size, size: int) -> torch.Size:
    """`shape` with each dimension replaced by `size` that no tensor of the cell has a say in."""
    return torch.Size(size if n < 0 else n for n in shape_class(tensors, shape))


def shape_class(tensors: dict[str, Tensor], shape: torch.Size) -> tuple[int, ...]:
    """`shape` with -1 for each dimension that no tensor of the cell has a say in.

    A tensor that does not broadcast to a step is a matrix, or a part of one: the last dimension alone, that
    of the neurons, is its matter.
    """
    fixed = [-1] * len(shape)
    for tensor in tensors.values():
        if not _broadcasts(tensor.shape, shape):
            fixed[-1:] = shape[-1:]
            continue
        for dimension, size in zip(range(len(shape) - 1, -1, -1), reversed(tensor.shape), strict=False):
            if size > 1:
                fixed[dimension] = shape[dimension]
    return tuple(fixed)


def _broadcasts(one: torch.Size, shape: torch.Size) -> bool:
    return len(one) <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(one), reversed(shape), strict=False)
    )


def tensors_of(cell: Cell) -> dict[str, Tensor]:
    """The parameters and buffers of `cell`, by name."""
    if not (cell._parameters or cell._buffers or cell._modules):
        return {}
    return {**dict(cell.named_parameters()), **dict(cell.named_buffers())}


_OF_TENSORS: Any = Tensor
"""Its attributes are descriptors, of which torch's own types know nothing."""
_SIZES = {Tensor.size, Tensor.numel, Tensor.nelement, Tensor.__len__, torch.numel}
_SIZES |= {getattr(_OF_TENSORS, name).__get__ for name in ("shape", "nbytes")}
_LAYOUT = {
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.data_ptr,
    Tensor.storage_offset,
    Tensor.untyped_storage,
}
_LAYOUT |= {getattr(_OF_TENSORS, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf")}


class _Looking(TorchFunctionMode):
    """Sees what a step asks of its tensors besides their numbers.

    Raises:
        Unsupported: if it asks what is another in a trace than in a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_sizes = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SIZES:
            self.at_sizes = True
        elif func in _LAYOUT:
            name = getattr(getattr(func, "__self__", func), "__name__", func)
            raise Unsupported(f"the step looks at {name} of a tensor")
        return func(*args, **(kwargs or {}))


_ATEN = torch.ops.aten


def _log_sigmoid(do: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    decay = do(_ATEN.exp.default, do(_ATEN.neg.default, do(_ATEN.abs.default, x)))
    return do(_ATEN.log_sigmoid.default, x), decay


def _prelu_backward(
    do: Callable[..., Tensor], grad: Tensor, x: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    above = do(_ATEN.gt.Scalar, x, 0)
    to_x = do(_ATEN.where.self, above, grad, do(_ATEN.mul.Tensor, slope, grad))
    return to_x, do(_ATEN.masked_fill.Scalar, do(_ATEN.mul.Tensor, x, grad), above, 0)


_IN_SEVERAL: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    _ATEN.log_sigmoid_forward.default: _log_sigmoid,
    _ATEN._prelu_kernel_backward.default: _prelu_backward,
}
"""Operations with several results, as operations that have one each."""


class _Recorder(TorchDispatchMode):
    """Writes each ATen operation that runs under it into an fx graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it so
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.storages: dict[int, fx.Node] = {}
        """The last that was named of those that share their memory."""
        self.alive: list[Any] = []
        """Every tensor seen: an id says something only while its tensor lives."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to be skipped by Dynamo, a mode would load all of it at its first operation."""
        return False

    def leaf(self, tensor: Tensor) -> Tensor:
        self._name(tensor, self.graph.placeholder(f"a{len(self.alive)}"))
        return tensor

    def node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self.nodes:
            known = self.storages.get(tensor.untyped_storage()._cdata)
            if known is not None:  # another name for it, that no operation gave
                self._name(tensor, self.graph.call_function(_alias_of(tensor, known), (known,)))
            elif tensor.requires_grad:
                raise Unsupported("a tensor that needs a gradient is no parameter of the cell")
            else:
                self._name(tensor, self.graph.call_function(foreign, (tensor,)))
        return self.nodes[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # what is asked here is not asked by the step
            return self._recorded(func, args, kwargs or {})

    def _recorded(self, func: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unsupported(f"{func} draws random numbers")
        if func in _IN_SEVERAL:
            return _IN_SEVERAL[func](lambda part, *given: self._recorded(part, given, {}), *args)
        result = func(*args, **kwargs)
        several = isinstance(result, tuple | list) and all(isinstance(part, Tensor) for part in result)
        if isinstance(result, Tensor) or several:
            recorded = tree_map(lambda a: self.node(a) if isinstance(a, Tensor) else a, (args, kwargs))
            node = self.graph.call_function(func, *recorded)
            for index, part in enumerate(result if several else ()):
                node.meta["val"] = part
                self._name(part, self.graph.call_function(operator.getitem, (node, index)))
            if not several:
                self._name(result, node)
        elif result is not None:
            raise Unsupported(f"{func}: the step looks at a value")
        return result

    def _name(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["val"] = tensor
        self.nodes[id(tensor)] = node
        self.storages[tensor.untyped_storage()._cdata] = node
        self.alive.append(tensor)


def _alias_of(tensor: Tensor, known: fx.Node) -> Any:
    """The operation that gives `tensor`, which shares the memory of `known`."""
    other = known.meta["val"]
    if (tensor.shape, tensor.stride(), tensor.dtype) != (other.shape, other.stride(), other.dtype):
        raise Unsupported("the step takes a part of a tensor by no operation")
    return torch.ops.aten.alias.default


def _rounded(number: Any, dtype: torch.dtype) -> Any:
    """`number`, if it is one, as PyTorch has it beside a tensor of `dtype`."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return number
    kind = torch.int64 if isinstance(number, int) else torch.float64
    return torch.tensor(number, dtype=kind, device="cpu").to(dtype).item()


def foreign(tensor: Tensor) -> Tensor:
    """A tensor that the step takes from elsewhere than its arguments and the cell's tensors."""
    return tensor


@dataclass(frozen=True)
class Place:
    """Stands for the value at a place among those that are known."""

    at: int


@dataclass(frozen=True)
class Part:
    """A part of a step's graph that PyTorch runs, as a function from tensors to tensors.

    Unlike ``fx.Interpreter`` it holds nothing between calls, so that threads can share it.
    """

    takes: int
    calls: list[tuple[Any, Any, Any]]
    """Functions, their arguments and keyword arguments; each adds a value to those that are given."""
    ends: list[int | None]

    def __call__(self, *tensors: Tensor) -> tuple[Any, ...]:
        values: list[Any] = list(tensors)
        for function, args, kwargs in self.calls:
            values.append(function(*filled(args, values), **filled(kwargs, values)))
        return tuple(None if end is None else values[end] for end in self.ends)


def _joint_graph(
    cell: Cell, tensors: dict[str, Tensor], shape: torch.Size, dtype: torch.dtype, device: str
) -> tuple[fx.Graph, bool]:
    """The operations of one step and of its gradient, and whether it looks at a size."""

    def leaf(like: Tensor, differentiable: bool) -> Tensor:
        blank = torch.zeros(like.shape, dtype=like.dtype, device=device).requires_grad_(differentiable)
        return recorder.leaf(blank)

    recorder, looking = _Recorder(), _Looking()
    one = torch.empty(shape, dtype=dtype, device="meta")
    count = len(cell.state_names())
    input_, *state = (leaf(one, True) for _ in range(1 + count))
    given = {name: leaf(tensor, tensor.requires_grad) for name, tensor in tensors.items()}
    grads = [leaf(one, False) for _ in range(count)]
    wanted = [input_, *state, *(value for value in given.values() if value.requires_grad)]
    try:
        with recorder, torch.enable_grad():
            with looking:
                nexts = torch.func.functional_call(cell, given, (input_, *state))
            _check_step(cell, nexts, shape)
            found = _gradients(nexts, wanted, grads, looking)
    except Unsupported:
        raise
    except Exception as error:  # whatever a step raises here is the reason it can't be read
        reason = str(error).partition("\n")[0]
        raise Unsupported(f"the step can't be read: {type(error).__name__}: {reason}") from error
    ends = [None if end is None else recorder.node(end) for end in (*nexts, *found)]
    recorder.graph.output(tuple(ends))
    return recorder.graph, looking.at_sizes


def _gradients(
    nexts: Sequence[Tensor], wanted: Sequence[Tensor], grads: Sequence[Tensor], looking: "_Looking"
) -> Sequence[Tensor | None]:
    followed = [(n, g) for n, g in zip(nexts, grads, strict=True) if n.requires_grad]
    if not followed:
        return [None] * len(wanted)
    ends, given = zip(*followed, strict=True)
    # torch.autograd.grad, less its check of shapes, which would load all of sympy
    engine = torch.autograd.Variable._execution_engine
    with looking:
        found: Sequence[Tensor | None] = engine.run_backward(
            ends, given, False, False, tuple(wanted), allow_unreachable=True, accumulate_grad=False
        )
    return found


def _check_step(cell: Cell, nexts: Any, shape: torch.Size) -> None:
    names = cell.state_names()
    if not isinstance(nexts, tuple | list) or len(nexts) != len(names):
        raise Unsupported(f"forward must return the states ({', '.join(names)}) as a tuple")
    for name, value in zip(names, nexts, strict=True):
        if not isinstance(value, Tensor) or value.shape != shape:
            raise Unsupported(f"state {name} does not keep the shape of one step of input")


def _same(layout: Tensor, other: Tensor, shape: torch.Size) -> bool:
    return layout.shape == shape and (layout is other or torch.equal(layout, other))


def _name_of(target: Any) -> str:
    """An ATen operation's name, whatever its overload."""
    return str(getattr(target, "_opname", ""))


class _Reading:
    """Reads an fx graph once, node by node."""

    def __init__(
        self,
        cell: Cell,
        tensors: dict[str, Tensor],
        graph: fx.Graph,
        shape: torch.Size,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.names = cell.state_names()
        self.tensors = tensors
        self.graph = graph
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.values: dict[fx.Node, Value] = {}
        self.known: dict[Any, Value] = {}
        self.constants: list[float] = []
        self.cell_tensors: list[fx.Node] = []
        self.parameters: list[fx.Node] = []
        self.once: set[fx.Node] = set()
        """Nodes that depend on the cell's tensors alone."""
        self.after: set[fx.Node] = set()
        """Nodes that depend on sums over neurons."""
        self.sums: list[fx.Node] = []
        """Per-neuron nodes that gradients of the cell's tensors are summed from."""
        self.layouts: dict[fx.Node, Tensor] = {}
        """Of the nodes in `values`."""
        self.matrices: list[fx.Node] = []
        self.outer: dict[fx.Node, tuple[Value, Value]] = {}
        self.behind: set[fx.Node] = set()
        """Nodes that gradients are a part of."""
        self.blank = False

    def step(self) -> Step:
        leaves = [node for node in self.graph.nodes if node.op == "placeholder"]
        for index, node in enumerate(leaves):
            self._read_leaf(node, index)
        for node in self.graph.nodes:
            if node.op == "call_function":
                self._read_call(node)
        (outputs,) = self.graph.output_node().args
        assert isinstance(outputs, tuple)
        count = len(self.names)
        nexts = tuple(self._value(node) for node in outputs[:count])
        grads = [None if node is None else node for node in outputs[count:]]
        grad_input, *grad_states = (None if g is None else self._value(g) for g in grads[: count + 1])
        ends = self._ends(grads[count + 1 :])
        return Step(
            states=tuple(f"{name}_state" for name in self.names),  # no name of a pass's own ends so
            nexts=nexts,
            grad_input=grad_input,
            grad_states=tuple(grad_states),
            grad_sums=tuple(self._value(node) for node in self.sums),
            constants=tuple(self.constants),
            prologue=self._subgraph(self.cell_tensors, [*self.parameters, *self.matrices]),
            epilogue=self._subgraph([*self.cell_tensors, *self.sums, *self.outer], ends),
            parameters=len(self.parameters),
            matrices=len(self.matrices),
            outer=tuple(self.outer.values()),
            blank=self.blank,
        )

    def _ends(self, learned: list[Any]) -> list[fx.Node | None]:
        """The node of each tensor's gradient, None where it has none; a sum where it is per neuron."""
        found = iter(learned)
        ends = [next(found) if tensor.requires_grad else None for tensor in self.tensors.values()]
        for end in ends:
            if end is not None and end not in self.after and end not in self.once and end not in self.sums:
                self._sum(end)
        return ends

    def _sum(self, node: fx.Node) -> None:
        if not is_step(self.layouts[node], self.shape):
            raise Unsupported("a sum over neurons that were moved")
        if node not in self.sums:
            self.sums.append(node)

    def _read_leaf(self, node: fx.Node, index: int) -> None:
        count = len(self.names)
        if index <= count or index > count + len(self.tensors):
            self.layouts[node] = step_layout(self.shape)
        if index == 0:
            self.values[node] = Value("input")
        elif index <= count:
            self.values[node] = Value("previous", data=index - 1)
        elif index <= count + len(self.tensors):
            self.cell_tensors.append(node)
            self.once.add(node)
        else:
            self.values[node] = Value("gradient", data=index - 1 - count - len(self.tensors))
            self.behind.add(node)

    def _read_call(self, node: fx.Node) -> None:
        used = node.all_input_nodes
        target = node.target
        if any(other in self.behind for other in used):
            self.behind.add(node)
        if target is foreign and self.device != "cpu":
            raise Unsupported(f"a tensor of the step's own is on the CPU, not on {self.device}")
        if target in (torch.ops.aten.sum.default, torch.ops.aten.sum.dim_IntList) and used[0] in self.values:
            self.after.add(node)
            self._sum(used[0])
            return
        name = _name_of(target)
        if name in PRODUCTS and any(other in self.values for other in used):
            self._read_product(node, name)
            return
        if target is operator.getitem:
            (self.once if used[0] in self.once else self.after).add(node)
            return
        if name in MOVES and used[0] in self.values:
            self._move(node, used[0])
            return
        if any(other in self.after for other in used):
            if any(other in self.values and other not in self.once for other in used):
                raise Unsupported(f"{target} mixes neurons with a sum over neurons")
            self.after.add(node)
        elif self._is_narrowed(node):
            self.after.add(node)  # after the sum over time, as PyTorch does after one over neurons
            self._sum(used[0])
        elif any(other in self.values and other not in self.once for other in used):
            self._read_pointwise(node)
        elif target is torch.ops.aten.scalar_tensor.default:
            self.values[node] = self._number(node.args[-1])
        else:
            if _writes(node) and len({id(n.meta["val"]) for n in self._shared_with(node)}) > 1:
                raise Unsupported(f"{target} writes into a tensor with another name")
            self.once.add(node)

    def _is_narrowed(self, node: fx.Node) -> bool:
        """Whether `node` gives a gradient the narrower dtype of the cell's tensor that it is for."""
        if _name_of(node.target) != "_to_copy" or node.all_input_nodes[0] not in self.values:
            return False
        dtype = node.meta["val"].dtype
        of_the_cell = {tensor.dtype for tensor in self.tensors.values() if tensor.requires_grad}
        return dtype != self.dtype and dtype in of_the_cell and self._is_held_by(dtype)

    def _move(self, node: fx.Node, source: fx.Node) -> None:
        """Reads an operation that only moves numbers."""
        assert callable(node.target)
        if node.meta["val"].numel() != self.shape.numel():
            raise Unsupported(f"{node.target} gives a neuron's number to several")
        if node.meta["val"].dtype != source.meta["val"].dtype:
            raise Unsupported(f"{node.target} changes the type")
        self.layouts[node] = moved(self.layouts[source], node.target, node.args[1:], node.kwargs)
        self.values[node] = self.values[source]
        if _name_of(node.target) == "squeeze_":
            self.layouts[source] = self.layouts[node]

    def _read_product(self, node: fx.Node, name: str) -> None:
        """Reads a product of a row of neurons, for each sample, with a matrix; or one summed over samples."""
        *added, left, right = node.args
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        if any(node.kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta")):
            raise Unsupported(f"{node.target} with a factor")
        neurons = self.shape[-1] if self.shape else 0
        within = [self.layouts.get(side) for side in (left, right)]
        if left in self.values and right in self.values:
            assert within[0] is not None
            assert within[1] is not None
            if added or not (columns(within[0], neurons) and rows(within[1], neurons)):
                raise Unsupported(f"{node.target} multiplies neurons with one another")
            self.outer[node] = self.values[left], self.values[right]
            self.after.add(node)
            return
        across = left in self.values
        operand, matrix = (left, right) if across else (right, left)
        layout = self.layouts.get(operand)
        if matrix not in self.once or layout is None or matrix.meta["val"].dtype != self.dtype:
            raise Unsupported(f"{node.target} of what is no row of neurons and no matrix of the cell's own")
        size = matrix.meta["val"].shape
        if size[-2:] != (neurons, neurons) or not (rows if across else columns)(layout, neurons):
            raise Unsupported(f"{node.target} of {neurons} neurons with a matrix {tuple(size)}")
        index, turned = self._matrix(matrix)
        value = self._make(
            "product", self.values[operand], data=2 * index + (turned if across else not turned)
        )
        self.layouts[node] = layout
        self.values[node] = value
        if added:
            (bias,) = added
            assert isinstance(bias, fx.Node)
            self._check_layout(node, [bias])
            self.values[node] = self._make("add", self._value(bias), value)

    def _matrix(self, node: fx.Node) -> tuple[int, bool]:
        """Which of the matrices `node` is, and whether transposed."""
        turned = False
        while _name_of(node.target) in ("t", "transpose", "mT", "view", "_unsafe_view") and self._is_matrix(
            node.args[0]
        ):
            turned ^= _name_of(node.target) in ("t", "transpose", "mT")
            (node,) = node.all_input_nodes
        if node not in self.matrices:
            self.matrices.append(node)
        return self.matrices.index(node), turned

    def _is_matrix(self, node: Any) -> bool:
        """Whether `node` is a square matrix that depends on the cell's tensors alone."""
        neurons = self.shape[-1]
        return node in self.once and node.meta["val"].squeeze(0).shape == (neurons, neurons)

    def _check_layout(self, node: fx.Node, used: list[fx.Node]) -> None:
        """Has all of `used` meet neuron by neuron, in the layout of the first of them that has one."""
        shape = node.meta["val"].shape
        layouts = [self.layouts[other] for other in used if other in self.layouts]
        layouts += [self.layouts[node]] if node in self.layouts else []
        if any(not _same(layout, layouts[0], shape) for layout in layouts):
            raise Unsupported(f"{node.target} changes the shape from {self.shape} to {tuple(shape)}")
        if shape != self.shape:
            others = (other.meta["val"] for other in used if other not in self.layouts)
            joined = is_step(layouts[0], self.shape) and shape[-1:] == self.shape[-1:]
            if any(other.numel() > 1 and not (joined and other.ndim == 1) for other in others):
                raise Unsupported(f"{node.target} changes the shape from {self.shape} to {tuple(shape)}")
        self.layouts[node] = layouts[0]

    def _read_pointwise(self, node: fx.Node) -> None:
        assert isinstance(node.target, torch._ops.OpOverload)
        if any(user.target is operator.getitem for user in node.users):
            raise Unsupported(f"{node.target}: the step takes several from one operation")
        result = node.meta["val"]
        self._check_layout(node, node.all_input_nodes)
        if result.dtype not in (self.dtype, torch.bool):
            raise Unsupported(f"{node.target} computes in {result.dtype}, not in {self.dtype}")
        target, args = self._on_device(node)
        boolean = result.dtype == torch.bool
        if boolean and all(n.meta["val"].dtype == torch.bool for n in node.all_input_nodes):
            # beside truth values alone, a number is one of the default dtype
            args = tuple(_rounded(a, torch.get_default_dtype()) for a in args)
        value = translate(target, args, node.kwargs, self._argument, self._make, boolean=boolean)
        self.blank = self.blank or (value.op == "number" and node in self.behind)
        if _writes(node):
            for other in self._shared_with(node):
                if other in self.once or other.meta["val"].shape != self.shape:
                    raise Unsupported(f"{target} writes into a part of a tensor, or one with another name")
                self.values[other] = value
        self.values[node] = value

    def _shared_with(self, node: fx.Node) -> list[fx.Node]:
        """All that was read before and shares the memory that `node` writes into."""
        changed = node.all_input_nodes[0]
        memory = changed.meta["val"].untyped_storage()._cdata
        found = []
        for other in self.graph.nodes:
            if other is node:
                break
            if other.meta["val"].untyped_storage()._cdata == memory:
                if other.op == "placeholder" or other.target is foreign:
                    raise Unsupported(f"{node.target} writes into an argument of the step")
                found.append(other)
        return found

    def _on_device(self, node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
        """The operation of `node` and its arguments, with what PyTorch fills in for the dtype or the device.

        On CUDA, a quotient by a number is a product with its reciprocal (BinaryDivTrueKernel.cu).
        """
        if _name_of(node.target) == "nan_to_num":
            x, *given = (*node.args, None, None, None)
            numbers = torch.finfo(self.dtype)
            usual = (0.0, numbers.max, numbers.min)
            return node.target, (x, *(u if g is None else g for u, g in zip(usual, given, strict=False)))
        if self.device != "cuda" or node.target not in _QUOTIENTS or isinstance(node.args[1], fx.Node):
            return node.target, node.args
        dividend, divisor = node.args
        return torch.ops.aten.mul.Tensor, (
            dividend,
            float(1 / torch.tensor(divisor, dtype=self.dtype, device="cpu")),
        )

    def _argument(self, argument: Any) -> Value:
        if isinstance(argument, fx.Node):
            return self._value(argument)
        return self._number(argument)

    def _value(self, node: Any) -> Value:
        if node in self.values:
            return self.values[node]
        if node in self.after:
            raise Unsupported("a sum over neurons feeds a neuron")
        tensor = node.meta["val"]
        if tensor.dtype not in (self.dtype, torch.bool) and not self._is_held_by(tensor.dtype):
            raise Unsupported(f"a parameter of the step is {tensor.dtype}, not {self.dtype}")
        self.parameters.append(self._in_full(node))
        value = Value("parameter", data=len(self.parameters) - 1, scalar=tensor.numel() == 1)
        if tensor.dtype == torch.bool:
            value = self._make("to_bool", value)
        self.values[node] = value
        return value

    def _is_held_by(self, dtype: torch.dtype) -> bool:
        """Whether what is computed with a number of `dtype` is computed in this step's dtype, exactly."""
        return dtype.is_floating_point and torch.promote_types(dtype, self.dtype) == self.dtype

    def _in_full(self, node: fx.Node) -> fx.Node:
        """`node`, of a parameter, in the step's dtype: a change of dtype that loses nothing."""
        tensor = node.meta["val"]
        if tensor.dtype == self.dtype:
            return node
        with self.graph.inserting_after(node):
            wide = self.graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": self.dtype})
        wide.meta["val"] = tensor.to(self.dtype)
        self.once.add(wide)
        return wide

    def _number(self, number: Any) -> Value:
        """A small int or a zero is part of the structure; any other number is a constant of the kernel."""
        if not isinstance(number, bool | int | float):
            raise Unsupported(f"an argument of type {type(number).__name__}")
        minus_zero = isinstance(number, float) and math.copysign(1, number) < 0
        if (isinstance(number, bool | int) and abs(number) < LARGE) or (number == 0 and not minus_zero):
            return self._make("number", data=int(number))
        self.constants.append(_rounded(number, self.dtype) if isinstance(number, int) else number)
        return Value("constant", data=len(self.constants) - 1)

    def _make(self, op: str, *args: Value, data: int = 0) -> Value:
        """The value ``op(*args)``, the same object whenever it is the same value."""
        if op == "to_float" and not args[0].boolean:
            return args[0]
        if op == "to_bool" and args[0].boolean:
            return args[0]
        if op == "to_bool" and args[0].op == "to_float":
            return args[0].args[0]
        if op in COMPARISONS or (op not in BOOLEAN and op not in ("to_float", "number", "where")):
            args = tuple(self._make("to_float", a) for a in args)
        key = (op, args, data)
        if key not in self.known:
            assert op in ("number", "product") or op in OPERATIONS, op
            self.known[key] = Value(op, args, data)
        return self.known[key]

    def _subgraph(self, inputs: list[fx.Node], outputs: list[Any]) -> Part:
        """The part of the graph from `inputs` to `outputs`, as a function."""
        needed: set[fx.Node] = set()
        stack = [node for node in outputs if node is not None]
        while stack:
            node = stack.pop()
            if node not in needed and node not in inputs:
                needed.add(node)
                stack.extend(node.all_input_nodes)
        joined = [n for n in inputs if n in self.sums and self.layouts[n].shape != self.shape]
        order = [*inputs, *joined, *(node for node in self.graph.nodes if node in needed)]
        place = {node: Place(i) for i, node in enumerate(order)}
        as_step = {node: Place(i) for i, node in enumerate(inputs)}
        standing: Any = place.__getitem__  # torch has it give nothing but what a node may hold
        calls: list[Any] = [
            (torch.ops.aten.reshape.default, (as_step[node], list(self.layouts[node].shape)), {})
            for node in joined
        ]
        calls += [
            (node.target, *fx.node.map_arg((node.args, self._placed(node.kwargs)), standing))
            for node in order[len(inputs) + len(joined) :]
        ]
        return Part(len(inputs), calls, [None if node is None else place[node].at for node in outputs])

    def _placed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """`kwargs` of an operation traced without data, which makes a tensor on the step's device."""
        there = torch.device(self.device)
        return {n: there if n == "device" and v == torch.device("meta") else v for n, v in kwargs.items()}


def _writes(node: fx.Node) -> bool:
    """Whether `node` is an operation in place."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.name.endswith("_")


def filled(argument: Any, values: list[Any]) -> Any:
    """`argument` with the value at each place in it."""
    if isinstance(argument, Place):
        return values[argument.at]
    if isinstance(argument, tuple | list):
        return [filled(part, values) for part in argument]
    if isinstance(argument, dict):
        return {name: filled(part, values) for name, part in argument.items()}
    return argument


def places_in(argument: Any) -> list[Place]:
    """The places of which :func:`filled` takes the values."""
    if isinstance(argument, Place):
        return [argument]
    if isinstance(argument, dict):
        argument = list(argument.values())
    inner = argument if isinstance(argument, tuple | list) else ()
    return [place for part in inner for place in places_in(part)]
