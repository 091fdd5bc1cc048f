"""Runs one step and its gradient on small tensors and records the ATen operations as an fx graph.

``make_fx`` would write down the same graph, but its first use in a process loads over a second's worth of
modules.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from hibana.cells import Cell
from hibana.compiler.draws import Drawing
from hibana.compiler.graph.ops import Unsupported
from hibana.runtime import torch_internals
from hibana.runtime.torch_internals import TorchDispatchMode, tree_map


def joint_graph(
    cell: Cell, tensors: dict[str, Tensor], shape: torch.Size, dtype: torch.dtype, device: str
) -> tuple[fx.Graph, bool]:
    """The operations of one step and of its gradient, and whether it looks at a size."""

    def leaf(like: Tensor, differentiable: bool) -> Tensor:
        blank = torch.zeros(like.shape, dtype=like.dtype, device=device).requires_grad_(differentiable)
        return recorder.leaf(blank)

    recorder = _Recorder(device)
    looking = _Looking(recorder)
    one = torch.empty(shape, dtype=dtype, device="meta")
    count = len(cell.state_names())
    input_, *state = (leaf(one, True) for _ in range(1 + count))
    given = {name: leaf(tensor, tensor.requires_grad) for name, tensor in tensors.items()}
    grads = [leaf(one, False) for _ in range(count)]
    wanted = [input_, *state, *(value for value in given.values() if value.requires_grad)]
    try:
        with recorder, torch.enable_grad():
            with _RecordedDraws(recorder), looking:
                nexts = torch.func.functional_call(cell, given, (input_, *state), tie_weights=False)
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
    with looking:
        gradients: Sequence[Tensor | None] = torch_internals.run_backward(ends, given, tuple(wanted))
    return gradients


def _check_step(cell: Cell, nexts: Any, shape: torch.Size) -> None:
    names = cell.state_names()
    if not isinstance(nexts, tuple | list) or len(nexts) != len(names):
        raise Unsupported(f"forward must return the states ({', '.join(names)}) as a tuple")
    for name, value in zip(names, nexts, strict=True):
        if not isinstance(value, Tensor) or value.shape != shape:
            raise Unsupported(f"state {name} does not keep the shape of one step of input")


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
_LAYOUT |= {
    getattr(_OF_TENSORS, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf", "grad", "_version")
}
_VALUES = {
    getattr(Tensor, name)
    for name in ("numpy", "tolist", "__array__", "__dlpack__", "__repr__", "__format__", "__reduce_ex__")
}
"""What reads a tensor's numbers without an operation that is recorded."""
_SET_DATA = _OF_TENSORS.data.__set__
_MAY_COPY = {getattr(of, name) for of in (Tensor, torch) for name in ("reshape", "flatten", "ravel")}
_MAY_COPY |= {Tensor.contiguous, Tensor.reshape_as}
"""What gives a view or a copy, depending on strides."""


class _Looking(TorchFunctionMode):
    """Sees which attributes of tensors a step reads; raises Unsupported for those that a trace changes."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self.at_sizes = False
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SIZES:
            self.at_sizes = True
        elif func == _SET_DATA:  # which no operation of ATen tells of
            raise Unsupported("the step puts another tensor in the place of one, by `.data =`")
        elif func in _LAYOUT or func in _VALUES:
            name = getattr(getattr(func, "__self__", func), "__name__", func)
            raise Unsupported(f"the step looks at {name} of a tensor")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _MAY_COPY or (func is Tensor.to and "memory_format" in kwargs):
            self.recorder.may_copy = True
        return result


class _RecordedDraws(Drawing):
    """Records the random numbers of a step as nodes that call :func:`draw`; it draws none."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__("a step")
        self.recorder = recorder

    def uniform(self, like: Tensor) -> Tensor:
        return self.recorder.draw(like, "uniform")

    def normal(self, like: Tensor) -> Tensor:
        return self.recorder.draw(like, "normal")


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

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it so
        self.device = device
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.storages: dict[int, fx.Node] = {}
        """The last node of each storage."""
        self.may_copy = False
        """Whether the step calls a function that gives a view or a copy, depending on strides."""
        self.alive: list[Any] = []
        """Every tensor seen, since they are known by id."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to be skipped by Dynamo, a mode would load all of it at its first operation."""
        return False

    def leaf(self, tensor: Tensor) -> Tensor:
        self._name(tensor, self.graph.placeholder(f"a{len(self.alive)}"))
        return tensor

    def draw(self, like: Tensor, distribution: str) -> Tensor:
        """Zeros with the shape and dtype of `like`, recorded as a call of :func:`draw`."""
        blank = torch.zeros_like(like, device=self.device)
        self._name(blank, self.graph.call_function(draw, (self.node(like), distribution)))
        return blank

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
        with torch_internals.without_torch_function():  # what is asked here is not asked by the step
            return self._recorded(func, args, kwargs or {})

    def _recorded(self, func: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unsupported(f"the step draws random numbers by {func}, which no kernel computes")
        if func in _IN_SEVERAL:
            return _IN_SEVERAL[func](lambda part, *given: self._recorded(part, given, {}), *args)
        if func is _ATEN._efficientzerotensor.default:  # the derivative of `torch.sgn`
            func = _ATEN.zeros.default  # zeros that have memory, which a kernel reads
        if self.may_copy and func._schema.is_mutable:
            raise Unsupported(
                f"{func} writes in place after `contiguous` or `reshape`, which give a view or a copy, "
                "depending on how the inputs lie"
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


def foreign(tensor: Tensor) -> Tensor:
    """A tensor that the step takes from elsewhere than its arguments and the cell's tensors."""
    return tensor


def draw(like: Tensor, distribution: str) -> Tensor:
    """Marks a node whose result is random, ``"uniform"`` or ``"normal"``, with the shape of `like`."""
    raise NotImplementedError("a traced draw is compiled, and never called")
