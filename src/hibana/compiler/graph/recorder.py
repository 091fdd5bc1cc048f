"""Runs one step and its gradient on small tensors and records the ATen operations as an fx graph.

``make_fx`` would record the same graph, but its first use in a process takes more than a second.
"""

import operator
from collections.abc import Callable, Sequence
from types import MethodWrapperType
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from hibana.cells import Cell
from hibana.cells.base import check_states
from hibana.compiler.draws import Drawing, poisson
from hibana.compiler.graph.ops import Unsupported
from hibana.runtime import torch_internals
from hibana.runtime.torch_internals import TorchDispatchMode, tree_leaves, tree_map


def joint_graph(
    cell: Cell, tensors: dict[str, Tensor], shape: torch.Size, dtype: torch.dtype, device: str
) -> tuple[fx.Graph, bool]:
    """The graph of one step and its gradient, and whether the step reads the size of a tensor.

    Placeholders of the graph are the input, the states, `tensors`, and the gradients of the next states. Its
    outputs are the next states, and the gradients of all differentiable placeholders, or None. Raises
    Unsupported if the step raises an error, or does something that a trace cannot record.
    """
    from hibana.runtime.kernels import COMPILING  # only here, so that `import hibana` does not load it

    def placeholder(like: Tensor, differentiable: bool) -> Tensor:
        """Zeros with the shape and dtype of `like`, recorded as an input of the graph."""
        zeros = torch.zeros(like.shape, dtype=like.dtype, device=device).requires_grad_(differentiable)
        return recorder.placeholder(zeros)

    recorder = _Recorder(device)
    reads = _AttributeReads(recorder)
    one_step = torch.empty(shape, dtype=dtype, device="meta")
    count = len(cell.state_names())
    input_, *state = (placeholder(one_step, True) for _ in range(1 + count))
    cell_tensors = {name: placeholder(tensor, tensor.requires_grad) for name, tensor in tensors.items()}
    grads = [placeholder(one_step, False) for _ in range(count)]
    inputs = [input_, *state, *(value for value in cell_tensors.values() if value.requires_grad)]
    try:
        # A mode restores flags of the process. If two threads left their modes in the order in which they
        # entered them, the flags would stay set, and torch.compile of torch 2.10 would compile nothing more.
        with COMPILING, recorder, torch.enable_grad():
            with _RecordedDraws(recorder), reads:
                nexts = torch.func.functional_call(cell, cell_tensors, (input_, *state), tie_weights=False)
            _check_shapes(cell, nexts, shape)
            gradients = _gradients(nexts, inputs, grads, reads)
    except Unsupported:
        raise
    except Exception as error:  # any error of the user's code is the reason
        reason = str(error).partition("\n")[0]
        raise Unsupported(f"the step can't be read: {type(error).__name__}: {reason}") from error
    outputs = [None if tensor is None else recorder.node(tensor) for tensor in (*nexts, *gradients)]
    recorder.graph.output(tuple(outputs))
    return recorder.graph, reads.sizes


def _gradients(
    nexts: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor], reads: "_AttributeReads"
) -> Sequence[Tensor | None]:
    """The gradients of `inputs`, from those of the differentiable states in `nexts`."""
    pairs = [(n, g) for n, g in zip(nexts, grads, strict=True) if n.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    outputs, output_grads = zip(*pairs, strict=True)
    with reads:
        gradients: Sequence[Tensor | None] = torch_internals.run_backward(
            outputs, output_grads, tuple(inputs)
        )
    return gradients


def _check_shapes(cell: Cell, nexts: Any, shape: torch.Size) -> None:
    """Raises Unsupported unless all states in `nexts`, the result of a step of `cell`, have this `shape`."""
    for name, value in zip(cell.state_names(), check_states(cell, nexts), strict=True):
        if value.shape != shape:
            raise Unsupported(f"state {name} does not keep the shape of one step of input")


_TENSOR_CLASS: Any = Tensor
"""The class, untyped, since its attributes are descriptors that its type stubs lack."""
_SIZES = {
    Tensor.size,
    Tensor.numel,
    Tensor.nelement,
    Tensor.__len__,
    torch.numel,
    Tensor.is_same_size,
    torch.is_same_size,
}
_SIZES |= {getattr(_TENSOR_CLASS, name).__get__ for name in ("shape", "nbytes")}
_CONSTANT = {
    getattr(_TENSOR_CLASS, name).__get__
    for name in ("device", "dtype", "is_cpu", "is_cuda", "is_sparse", "itemsize", "layout", "ndim")
}
_CONSTANT |= {getattr(Tensor, name) for name in ("dim", "element_size", "ndimension", "type")}
_CONSTANT |= {
    getattr(kind, name)
    for kind in (Tensor, torch)
    for name in ("is_complex", "is_floating_point", "is_signed")
}
_CONSTANT |= {torch.device, Tensor.register_hook}
"""Functions of tensors whose results are no tensors, and the same in a trace as in a call."""
_GRADIENT = _TENSOR_CLASS.grad.__get__
_SET_DATA = _TENSOR_CLASS.data.__set__
_MAY_COPY = {getattr(kind, name) for kind in (Tensor, torch) for name in ("reshape", "flatten", "ravel")}
_MAY_COPY |= {Tensor.contiguous, Tensor.reshape_as}
"""Functions whose result is a view or a copy, depending on strides."""


class _AttributeReads(TorchFunctionMode):
    """Detects reads of tensor attributes in a step; raises Unsupported for those that a trace may change.

    These are results without tensors, except sizes and the results of :data:`_CONSTANT`.
    """

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self.sizes = False
        """Whether the step reads a size."""
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func`; notes reads of sizes, and raises Unsupported for reads that a trace may change."""
        if func == _SET_DATA:  # no ATen operation records it
            raise Unsupported("the step replaces the data of a tensor, by `.data =`")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _SIZES:
            self.sizes = True
        elif func not in _CONSTANT:
            is_attribute = isinstance(func, MethodWrapperType) and func.__name__ == "__get__"
            is_read = not _has_tensor(result) and (is_attribute or result is not None)
            if is_read or func == _GRADIENT:
                name = getattr(func.__self__ if is_attribute else func, "__name__", func)
                raise Unsupported(f"the step looks at {name} of a tensor")
        if func in _MAY_COPY or (func is Tensor.to and "memory_format" in kwargs):
            self.recorder.may_copy = True
        return result


def _has_tensor(result: Any) -> bool:
    """Whether `result` is a tensor or contains one."""
    return any(isinstance(part, Tensor) for part in tree_leaves(result))


class _RecordedDraws(Drawing):
    """Records the random numbers of a step as nodes that call :func:`draw`; it draws none."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__("a step")
        self.recorder = recorder

    def uniform(self, like: Tensor) -> Tensor:
        """Records a draw from [0, 1), of the shape of `like`."""
        return self.recorder.draw(like, "uniform")

    def normal(self, like: Tensor) -> Tensor:
        """Records a draw from the normal distribution, of the shape of `like`."""
        return self.recorder.draw(like, "normal")

    def poisson(self, rate: Tensor) -> Tensor:
        """Records a draw from the Poisson distributions of mean `rate`."""
        mean = rate.detach()
        return self.recorder.poisson(self.uniform(mean), mean, torch.exp(-mean))


_ATEN = torch.ops.aten


def _log_sigmoid(call: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """``log_sigmoid(x)``, and ``exp(-|x|)``, which its backward reads."""
    decay = call(_ATEN.exp.default, call(_ATEN.neg.default, call(_ATEN.abs.default, x)))
    return call(_ATEN.log_sigmoid.default, x), decay


def _prelu_backward(
    call: Callable[..., Tensor], grad: Tensor, x: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the input `x` and of the `slope` of ``prelu``, from the gradient of its result."""
    above = call(_ATEN.gt.Scalar, x, 0)
    grad_x = call(_ATEN.where.self, above, grad, call(_ATEN.mul.Tensor, slope, grad))
    return grad_x, call(_ATEN.masked_fill.Scalar, call(_ATEN.mul.Tensor, x, grad), above, 0)


_DECOMPOSED: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    _ATEN.log_sigmoid_forward.default: _log_sigmoid,
    _ATEN._prelu_kernel_backward.default: _prelu_backward,
}
"""Operations with several results, as compositions of operations that have one result each."""


class _Recorder(TorchDispatchMode):
    """Records each ATen operation that runs within it in an fx graph."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no types for it
        self.device = device
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        """The node of each tensor, by its id."""
        self.storages: dict[int, fx.Node] = {}
        """The last node of each storage, by its address."""
        self.may_copy = False
        """Whether the step has called a function of :data:`_MAY_COPY`."""
        self.alive: list[Any] = []
        """All tensors with a node, since their ids are valid only while they exist."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, since a mode that Dynamo skips loads all of Dynamo at its first operation."""
        return False

    def placeholder(self, tensor: Tensor) -> Tensor:
        """`tensor`, recorded as the next placeholder of the graph."""
        self._name(tensor, self.graph.placeholder(f"a{len(self.alive)}"))
        return tensor

    def draw(self, like: Tensor, distribution: str) -> Tensor:
        """Zeros with the shape and dtype of `like`, recorded as a call of :func:`draw`."""
        blank = torch.zeros_like(like, device=self.device)
        self._name(blank, self.graph.call_function(draw, (self.node(like), distribution)))
        return blank

    def poisson(self, u: Tensor, rate: Tensor, p_zero: Tensor) -> Tensor:
        """Records a number of Poisson's distribution of mean `rate`, from `u` in [0, 1); returns zeros."""
        blank = torch.zeros_like(u)
        self._name(blank, self.graph.call_function(poisson, tuple(map(self.node, (u, rate, p_zero)))))
        return blank

    def node(self, tensor: Tensor) -> fx.Node:
        """The node of `tensor`, which is added for an alias and for a tensor from outside the step."""
        if id(tensor) not in self.nodes:
            source = self.storages.get(torch_internals.storage_key(tensor))
            if source is not None:  # such as `.data`, which is no ATen operation
                self._name(tensor, self.graph.call_function(_alias(tensor, source), (source,)))
            elif tensor.requires_grad:
                raise Unsupported("a tensor that needs a gradient is no parameter of the cell")
            else:
                self._name(tensor, self.graph.call_function(foreign, (tensor,)))
        return self.nodes[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Records each ATen operation, below autograd."""
        with torch_internals.without_torch_function():  # the recorder reads sizes itself
            return self._recorded(func, args, kwargs or {})

    def _recorded(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs the ATen operation `func`, adds a node for it to the graph, and returns its result."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unsupported(f"the step draws random numbers by {func}, which no kernel computes")
        if func in _DECOMPOSED:
            return _DECOMPOSED[func](lambda part, *parts: self._recorded(part, parts, {}), *args)
        if func is _ATEN._efficientzerotensor.default:  # the derivative of `torch.sgn`
            func = _ATEN.zeros.default  # unlike an efficient zero tensor, it has memory
        if self.may_copy and func._schema.is_mutable:
            raise Unsupported(
                f"{func} writes in place after `contiguous` or `reshape`, whose result is a view or a copy, "
                "depending on the strides of the inputs"
            )
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
            raise Unsupported(f"{func}: the step reads a number of a tensor into Python")
        return result

    def _name(self, tensor: Tensor, node: fx.Node) -> None:
        """Stores the `node` of the graph that computes `tensor`, and keeps both alive."""
        node.meta["val"] = tensor
        self.nodes[id(tensor)] = node
        self.storages[torch_internals.storage_key(tensor)] = node
        self.alive.append(tensor)


def _alias(tensor: Tensor, source: fx.Node) -> Any:
    """ATen's ``alias``, if `tensor` has the shape, strides and dtype of `source`, whose memory it shares."""
    other = source.meta["val"]
    if (tensor.shape, tensor.stride(), tensor.dtype) != (other.shape, other.stride(), other.dtype):
        raise Unsupported("the step takes a part of a tensor without an operation of ATen")
    return torch.ops.aten.alias.default


def foreign(tensor: Tensor) -> Tensor:
    """Marks a node whose tensor is neither an argument of the step nor a tensor of the cell."""
    return tensor


def draw(like: Tensor, distribution: str) -> Tensor:
    """Marks a node whose result is random, ``"uniform"`` or ``"normal"``, with the shape of `like`."""
    raise NotImplementedError("a traced draw is compiled, and never called")
