"""Provenance of spikes: what is known of a tensor, of its producer, and of observers of its gradient.

Three facts travel with a tensor, each optional:

- its numbers as bits, attached to its storage (:mod:`hibana.compiler.attached`), compared with the numbers at
  each lookup, since a write through ``.data`` leaves no trace;
- the *mask* of the layer that produced it: where the surrogate's derivative can be non-zero, kept by the node
  of autograd, so that a consumer may compute its input's gradient there alone;
- the *observers* between the two: hooks and ``retain_grad``. With any of them the gradient is computed
  everywhere. A hook put on a node itself (``Node.register_prehook``) is not seen.

Views of all of a tensor are looked through, and so are the nodes of this package that pass spikes on.
"""

from collections import OrderedDict
from functools import cache, lru_cache
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from hibana.compiler.attached import RUNS, Known, known
from hibana.runtime import torch_internals
from hibana.spikes.bits import agree

__all__ = [
    "Provenance",
    "attach_view",
    "attach_sum",
    "lookup",
    "fills_memory",
    "may_have_bits",
    "lookup_numbers",
    "probe",
    "lookup_mask",
]

Observers = tuple[tuple[Any, "OrderedDict[int, Any]"], ...]


class Provenance(NamedTuple):
    """What is known of a tensor: its producer's surrogate mask, its numbers as bits, its observers."""

    bits: Tensor | None
    """The mask, ``[pieces, bytes]``, `length` elements each in memory order; None if it is the spikes."""
    length: int
    observers: Observers | None
    """Weak references to the tensors between producer and consumer, and their hooks; None if the producer is
    not known: the gradient is computed everywhere then."""
    planes: Tensor | None = None
    """The numbers, ``[planes, pieces, bytes]``, if they are known: one plane for spikes, several for sums
    (:class:`Planes`)."""
    most: int = 1
    """The largest possible number."""
    ones: int = 0
    """Number of set bits in the planes."""

    @property
    def spikes(self) -> Tensor | None:
        """The bits of the tensor, if it is known to be spikes."""
        return self.planes[0] if self.planes is not None and self.planes.shape[0] == 1 else None

    def rows(self, bits: Tensor, length: int) -> Tensor | None:
        """`bits`, ``[..., pieces, bytes]``, viewed as ``[..., rows, words]``, `length` elements a row.

        None if rows do not begin at a word of 64 bits.
        """
        words = -(-length // 64)
        whole_words = length % 64 == 0 and self.length % 64 == 0
        if whole_words or (length == self.length and bits.shape[-1] == 8 * words):
            return bits.view(torch.int64).view(*bits.shape[:-2], -1, words)
        return None

    def has_no_observer(self) -> bool:
        """Whether, in the backward that runs now, nothing but the producer's node receives this gradient."""
        if self.observers is None:
            return False
        for tensor, hooks in self.observers:
            there = tensor()
            if hooks or (there is not None and there.retains_grad):
                return False
        return bool(torch_internals.will_execute(_probe_node()))


_PROBE = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)


def probe() -> Tensor:
    """A leaf that never gets a gradient, given to a layer's node as one more input.

    The engine executes its node in a plain ``backward()`` only: where gradients of chosen tensors are asked
    for (``torch.autograd.grad``, ``inputs=``), any of them may be one that would be left out.
    """
    return _PROBE


@cache
def _probe_node() -> Any:
    """The node that accumulates the probe's gradient."""
    return torch.autograd.graph.get_gradient_edge(_PROBE).node


def lookup_mask(tensor: Tensor) -> Provenance | None:
    """The provenance of `tensor`, or of what it is a view of all of, if the graph says which layer produced
    it.
    """
    return _from_graph(tensor, *_checked(tensor))


def lookup(tensor: Tensor) -> Provenance | None:
    """:func:`lookup_mask`, or, where that is not known, what the numbers are known to be."""
    found, ones = _checked(tensor)
    support = _from_graph(tensor, found, ones) if tensor.requires_grad else None
    if support is None and found is not None:
        return Provenance(None, found.length, None, found.planes, found.most, ones)
    return support


def lookup_numbers(tensor: Tensor) -> Known | None:
    """The known bits of `tensor`, if its numbers still are what they say."""
    return _checked(tensor)[0]


def _checked(tensor: Tensor) -> tuple[Known | None, int]:
    """The known bits of `tensor`, after comparing all its numbers with them, and the number of ones."""
    found = known(tensor) or _emitted(tensor)
    ones = agree(tensor, found.planes) if found is not None and fills_memory(tensor) else None
    return (None, 0) if ones is None else (found, ones)


def may_have_bits(tensor: Tensor) -> bool:
    """Whether bits of `tensor` are stored, which may be outdated."""
    return known(tensor) is not None or _emitted(tensor) is not None


def _emitted(tensor: Tensor) -> Known | None:
    """The bits of the spikes that the producer's node of autograd saved."""
    base = tensor if tensor._base is None else tensor._base
    node: Any = base.grad_fn
    spikes: Tensor | None = node.spikes if _is_run(node) else None
    if spikes is None or tensor.numel() != base.numel() or not fills_memory(base):
        return None
    return Known(spikes[None], base.shape[1:].numel(), 1, (0, 0))


def _is_run(node: Any) -> bool:
    """Whether `node` is that of a compiled spiking layer."""
    return type(getattr(node, "specification", None)) in RUNS


def _from_graph(tensor: Tensor, found: Known | None, ones: int) -> Provenance | None:
    """The provenance of `tensor` from autograd's graph; `found` and `ones` are its known bits."""
    base = tensor if tensor._base is None else tensor._base
    node: Any = base.grad_fn
    support = getattr(node, "support", None)
    if support is None and node is not None and node.name() == _SUM:
        support = node.metadata.get(_BELOW)
    if not isinstance(support, Provenance) and (support is None or not _is_run(node)):
        return None  # not a node of this package
    if not _is_all_of(tensor, base):
        return None
    observers = _views_between(tensor, node)
    if observers is None:
        return None
    observers = (*observers, (ref(tensor), _hooks(tensor)))
    if base is not tensor:
        observers = (*observers, (ref(base), _hooks(base)))
    if isinstance(support, Provenance):
        bits, length, observers = support.bits, support.length, (*observers, *(support.observers or ()))
        if bits is None and found is None:
            return None  # the mask is the spikes, which were overwritten
    else:
        bits, length = support, base.shape[1:].numel()
        if found is not None and support is node.spikes:
            bits = None
    if found is None:
        return Provenance(bits, length, observers)
    return Provenance(bits, length, observers, found.planes, found.most, ones)


def attach_view(view: Tensor) -> Tensor:
    """Notes at the autograd node of `view`, which has all numbers of its base, who observes its gradient.

    :func:`lookup_mask` finds it there when it goes from a tensor back to the layer that made it.
    """
    node: Any = None if torch.compiler.is_compiling() else view.grad_fn
    if node is not None and node.name() in _VIEWS:
        node.metadata[_SEEN] = (ref(view), _hooks(view))
    return view


def attach_sum(total: Tensor, support: Provenance) -> None:
    """Attaches the provenance `support` to `total`, a sum that torch has just computed."""
    node: Any = total.grad_fn
    if node.name() == _SUM:
        node.metadata[_BELOW] = support


_VIEWS = ("ViewBackward0", "ReshapeAliasBackward0")
"""Views of all of a tensor."""
_SEEN = "hibana: observers of this view"
_SUM = "AddBackward0"
_BELOW = "hibana: provenance of this sum"


def _views_between(tensor: Tensor, node: Any) -> Observers | None:
    """Observers of the views between `tensor` and the output of `node`; None if a view was not recorded."""
    above: Any = tensor.grad_fn
    observers: list[Any] = []
    while above is not node:
        if above is None or above.name() not in _VIEWS:
            return None
        if above is not tensor.grad_fn:
            if _SEEN not in above.metadata:
                return None
            observers.append(above.metadata[_SEEN])
        above = above.next_functions[0][0]
    return tuple(observers)


def _is_all_of(view: Tensor, base: Tensor) -> bool:
    """Whether `view` is of all numbers of `base`, both of which fill their memory."""
    if view is base:
        return fills_memory(view)
    return view.numel() == base.numel() and fills_memory(view) and fills_memory(base)


def fills_memory(tensor: Tensor) -> bool:
    """Whether `tensor` fills its memory without gaps, in whatever order of dimensions."""
    return tensor.is_contiguous() or _is_without_gaps(tensor.shape, tensor.stride())


@lru_cache(maxsize=1024)
def _is_without_gaps(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    size = 1
    for stride, extent in sorted(zip(strides, shape, strict=True)):
        if extent != 1:
            if stride != size:
                return False
            size *= extent
    return True


def _hooks(tensor: Tensor) -> "OrderedDict[int, Any]":
    """The dictionary that every hook put on `tensor`, now or later, enters."""
    hooks = tensor._backward_hooks
    if hooks is None:  # as Tensor.register_hook makes it
        hooks = tensor._backward_hooks = OrderedDict()
        if tensor.grad_fn is not None:
            tensor.grad_fn._register_hook_dict(tensor)
    assert isinstance(hooks, OrderedDict)
    return hooks
