"""Whether a cell emits spikes: read from its step, never from a name.

The step runs on a few zeros while a dispatch mode follows which tensors hold only zeros and ones: results of
comparisons, and of conversions, products, selects and moves of such. Unlike a trace this takes any step.
"""

import copy
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.walk import followed
from hibana.runtime.torch_internals import TorchDispatchMode, tree_leaves

_KNOWN: "WeakKeyDictionary[Cell, tuple[Hashable, bool]]" = WeakKeyDictionary()


def emits_spikes(cell: Cell) -> bool:
    """Whether `cell` emits only zeros and ones, as :attr:`Cell.emits_spikes` or else its step says.

    Raises:
        Unsupported: if the step can't be run on zeros.

    >>> import hibana as hb
    >>> emits_spikes(hb.IFCell()), emits_spikes(hb.LICell())
    (True, False)
    """
    if cell.emits_spikes is not None:
        return cell.emits_spikes
    try:
        about: Hashable = followed(cell).key
    except Unsupported:
        about = None  # it can change unseen, so nothing is remembered of it
    if about is not None and cell in _KNOWN and _KNOWN[cell][0] == about:
        return _KNOWN[cell][1]
    with ThreadPoolExecutor(1) as clean:  # a thread has no modes, no autocast and no default device
        found = clean.submit(_read, cell).result()
    if about is not None:
        _KNOWN[cell] = about, found
    return found


def _read(cell: Cell) -> bool:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            blank: Cell = _blank(cell)
            tensors = [*blank.parameters(), *blank.buffers()]
            sizes = [tensor.shape for tensor in tensors]
            one = torch.broadcast_shapes(*sizes)  # type: ignore[no-untyped-call] # torch leaves it so
            dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
            return _last_is_truth(blank, torch.zeros(2, *one, dtype=dtype, device="cpu"))
    except Exception as error:  # whatever a step raises here is the reason it can't be read
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise Unsupported(
            f"whether {type(cell).__name__} emits spikes can't be read from its step ({reason}); "
            f"say so in the class: emits_spikes = True, or False"
        ) from error


def _last_is_truth(cell: Cell, input_: Tensor) -> bool:
    """Whether the last state holds only zeros and ones after every step."""
    mode = _Truths()
    with mode:
        state = cell.initial_state(input_)
        truths = {i for i, value in enumerate(state) if mode.is_truth(value)}
    while True:
        mode = _Truths()
        with mode:
            before = [value.clone() for value in state]
            mode.known = {id(before[i]): before[i] for i in truths}
            after = cell.forward(input_.clone(), *before)
            kept = {i for i in truths if mode.is_truth(after[i])}
            last = mode.is_truth(after[-1])
        if kept == truths or not last:
            return last
        truths = kept


def _blank(module: nn.Module) -> Any:
    """A copy of `module` whose tensors are zeros on the CPU."""
    blank = copy.copy(module)
    for kind in ("_parameters", "_buffers"):
        tensors = vars(module)[kind].items()
        vars(blank)[kind] = {
            n: None if t is None else torch.zeros(t.shape, dtype=t.dtype, device="cpu") for n, t in tensors
        }
    vars(blank)["_modules"] = {n: m if m is None else _blank(m) for n, m in module._modules.items()}
    return blank


_MADE = {"bernoulli", "new_ones", "new_zeros", "ones", "ones_like", "zero", "zeros", "zeros_like"}
"""Operations that give only zeros and ones, whatever their arguments."""
_FROM: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("_to_copy", "abs", "clone", "flip", "index_select", "relu"), lambda x, *_: x),
    **dict.fromkeys(("mul", "maximum", "minimum"), lambda x, y: (x, y)),
    **dict.fromkeys(("cat", "stack"), lambda parts, *_: parts),
    **dict.fromkeys(("full", "full_like", "fill", "copy", "heaviside"), lambda _, x, *__: x),
    "scalar_tensor": lambda x: x,
    "where": lambda _, *chosen: chosen or None,
    "masked_fill": lambda x, _, y: (x, y),
    "rsub": lambda x, one, alpha=1: x if one == alpha == 1 else None,
}
"""Operations that give only zeros and ones if these of their arguments are such."""


class _Truths(TorchDispatchMode):
    """Follows which tensors hold nothing but zeros and ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it so
        self.known: dict[int, Tensor] = {}  # of numbers, by id, which is valid while its tensor lives

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to be skipped by Dynamo, a mode would load all of it at its first operation."""
        return False

    def is_truth(self, value: Any) -> bool:
        """Whether `value`, a tensor or a number, is all zeros and ones, or true and false."""
        if isinstance(value, Tensor):
            return value.dtype == torch.bool or id(value) in self.known
        return isinstance(value, bool | int | float) and value in (0, 1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        truth = self._gives_truth(func, args)
        result = func(*args, **(kwargs or {}))
        results = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if func._schema.is_mutable:
            written = {value.untyped_storage()._cdata for value in results}
            self.known = {i: t for i, t in self.known.items() if t.untyped_storage()._cdata not in written}
        if truth:
            self.known.update({id(value): value for value in results})
        return result

    def _gives_truth(self, func: Any, args: Any) -> bool:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        moved = func.is_view and name != "_neg_view" and func._overloadname != "dtype"
        if not moved and name not in _FROM:
            return name in _MADE
        needed = args[0] if moved else _FROM[name](*args)
        return all(self.is_truth(value) for value in tree_leaves(needed))
