"""Where the gradient of a layer's input can matter, read from the graph that autograd has built.

The node of a compiled spiking layer carries `support`: the bits ``[T, ceil(N/8)]`` of where its surrogate's
derivative can be non-zero, and `spikes`: those of what it emitted, if it kept them. The nodes of this module
that pass spikes on carry a :class:`Support` of their own, and torch's node of a sum has one in its metadata.
A gradient may be left out elsewhere only if nobody else looks at it. Anything that is not known here means
everywhere, which is always right. A hook put on a node itself (``Node.register_prehook``), not on a tensor,
is not seen.
"""

from collections import OrderedDict
from functools import cache, lru_cache
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from hibana.events.bits import agree, are_still, sampled_bits
from hibana.loop.known import known

__all__ = [
    "Support",
    "announce",
    "announce_support",
    "below",
    "fills_memory",
    "passed_on",
    "probe",
    "support_of",
]

Watched = tuple[tuple[Any, "OrderedDict[int, Any]"], ...]


class Support(NamedTuple):
    """What is known about the spiking layer below: where its gradient matters, and who may look on."""

    bits: Tensor | None
    """``[pieces, bytes]``, each piece `length` elements in the order of memory; None: they are the spikes."""
    length: int
    watched: Watched
    """Weak references to the tensors on the way, and the hooks that anybody puts on them."""
    planes: Tensor | None = None
    """``[planes, pieces, bytes]``, as `bits`: the numbers themselves, if they were kept and nothing was
    written since. Those of spikes are one plane, those of their sums several (:class:`Planes`)."""
    most: int = 1
    """The largest that a number can be."""
    sample: Tensor | None = None
    """Bits of a sample of the spikes, where these are passed on and are the support themselves."""
    ones: int = 0
    """How many bits of the planes are set."""

    @property
    def spikes(self) -> Tensor | None:
        """The bits of what the layer emitted, if :attr:`planes` are those of spikes."""
        return self.planes[0] if self.planes is not None and self.planes.shape[0] == 1 else None

    def rows(self, bits: Tensor, length: int) -> Tensor | None:
        """`bits` as rows of `length` elements that begin with a word each, if they can be seen so.

        They are ``[..., pieces, bytes]``, the rows ``[..., rows, words]``.
        """
        words = -(-length // 64)
        whole_words = length % 64 == 0 and self.length % 64 == 0
        if whole_words or (length == self.length and bits.shape[-1] == 8 * words):
            return bits.view(torch.int64).view(*bits.shape[:-2], -1, words)
        return None

    def unseen(self) -> bool:
        """Whether, in the backward that runs now, only the node below gets this gradient."""
        for tensor, hooks in self.watched:
            there = tensor()
            if hooks or (there is not None and there.retains_grad):
                return False
        return bool(torch._C._will_engine_execute_node(_probe_node()))


_PROBE = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)


def probe() -> Tensor:
    """A leaf that never gets a gradient, given to a layer's node as one more input.

    The engine executes its node in a plain ``backward()`` only: where gradients of chosen tensors are asked
    for (``torch.autograd.grad``, ``inputs=``), any of them may be one that would be left out.
    """
    return _PROBE


@cache
def _probe_node() -> Any:
    """The node that accumulates the probe's gradient, which is the same while somebody holds it."""
    return torch.autograd.graph.get_gradient_edge(_PROBE).node


def support_of(tensor: Tensor) -> Support | None:
    """What is known of the spiking layer that `tensor`, or what it is a view of all of, came from.

    Bits are in the order of memory, which is that of `tensor` too.
    """
    base = tensor if tensor._base is None else tensor._base
    node: Any = base.grad_fn
    support = getattr(node, "support", None)
    if support is None and node is not None and node.name() == _SUM:
        support = node.metadata.get(_BELOW)
    if support is None or not _is_all_of(tensor, base):
        return None
    watched = _views_between(tensor, node)
    if watched is None:
        return None
    watched = (*watched, (ref(tensor), _hooks(tensor)))
    if base is not tensor:
        watched = (*watched, (ref(base), _hooks(base)))
    if isinstance(support, Support):
        ones, planes = None, support.planes
        if planes is not None and not tensor._version:
            ones = agree(tensor, planes)
        if support.bits is None and ones is None and not _is_as_passed_on(tensor, base, support):
            return None
        watched = (*watched, *support.watched)
        planes = None if ones is None else planes
        return Support(support.bits, support.length, watched, planes, support.most, ones=ones or 0)
    spikes: Tensor | None = node.spikes
    if spikes is None:
        return Support(support, base.shape[1:].numel(), watched)
    ones = None if tensor._version else agree(tensor, spikes[None])
    if ones is None:
        return Support(support, base.shape[1:].numel(), watched)
    bits = None if support is spikes else support
    return Support(bits, base.shape[1:].numel(), watched, spikes[None], ones=ones)


def below(tensor: Tensor) -> Support | None:
    """:func:`support_of`, or, where no gradient goes there, what the numbers are known to be."""
    if tensor.requires_grad:
        return support_of(tensor)
    base = tensor if tensor._base is None else tensor._base
    found = known(base)
    if found is None or not _is_all_of(tensor, base):
        return None
    ones = agree(tensor, found.planes)
    if ones is None:
        return None
    return Support(None, base.shape[1:].numel(), (), found.planes, found.most, ones=ones)


def passed_on(spikes: Tensor, length: int, watched: Watched, planes: Tensor | None = None) -> Support:
    """What is known below `spikes` that were made of others, which were their own support."""
    return Support(None, length, watched, planes, sample=None if planes is not None else sampled_bits(spikes))


def _is_as_passed_on(spikes: Tensor, base: Tensor, support: Support) -> bool:
    """Whether nobody wrote to `spikes`, a view of all of `base`, nor unseen, as by ``.data`` and NumPy."""
    if spikes._version or support.sample is None:
        return False
    return spikes.numel() == 0 or are_still(spikes, support.sample, base.shape[0])


def announce(view: Tensor) -> Tensor:
    """Lets :func:`support_of` see through `view`, which was made of all of a tensor, and who looks at it."""
    node: Any = None if torch.compiler.is_compiling() else view.grad_fn
    if node is not None and node.name() in _VIEWS:
        node.metadata[_SEEN] = (ref(view), _hooks(view))
    return view


def announce_support(total: Tensor, support: Support) -> None:
    """Lets :func:`support_of` know what stands below `total`, a sum that torch has just made."""
    node: Any = total.grad_fn
    if node.name() == _SUM:
        node.metadata[_BELOW] = support


_VIEWS = ("ViewBackward0", "ReshapeAliasBackward0")
"""Views of all of a tensor."""
_SEEN = "hibana: who looks at this view"
_SUM = "AddBackward0"
_BELOW = "hibana: what stands below this sum"


def _views_between(tensor: Tensor, node: Any) -> Watched | None:
    """Who may look at the views between `tensor` and what `node` put out; None if that can't be told."""
    above: Any = tensor.grad_fn
    watched: list[Any] = []
    while above is not node:
        if above is None or above.name() not in _VIEWS:
            return None
        if above is not tensor.grad_fn:
            if _SEEN not in above.metadata:
                return None
            watched.append(above.metadata[_SEEN])
        above = above.next_functions[0][0]
    return tuple(watched)


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
