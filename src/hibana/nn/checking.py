"""``hb.check``: at which layer of a network NaN, infinity or a wrong axis comes in, for debugging.

Hooks look at each call of each module, so what runs within is slow; nothing is looked at otherwise.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import ambient, record
from hibana.compiler.explain import left_as_it_was
from hibana.compiler.first_call import features_first, forget
from hibana.nn.each_step import EachStep
from hibana.nn.layers import Recurrent
from hibana.nn.running import Stateful
from hibana.runtime.torch_internals import tree_leaves

__all__ = ["check"]


def check(net: nn.Module, inputs: Tensor | None = None) -> "Checking":
    """Names the layer and step at which NaN or infinity first comes in, and the layer with a wrong axis.

    As ``with hb.check(net): ...`` it looks at every call of `net` within the block. With `inputs` it calls
    `net` with them once, forward and backward, and leaves parameters, gradients, buffers and the state of
    the random generator as they were.

    A spiking neuron that was once given NaN never spikes again, and its output is a finite 0. So the inputs
    and outputs of every layer are looked at, and the states of its neurons, which run again from rest, step
    by step. Of axes it finds a module of ``torch.nn`` that takes axis 1 for channels and is called with
    ``[T, batch, ...]`` outside of :class:`hibana.EachStep`, an ``nn.Flatten`` that joins the batch, and a
    layer over time behind a linear layer whose input has two dimensions. It can't see a batch that stands
    before time: its errors and :func:`hibana.explain` say how many steps of how many samples were read. NaN
    in gradients is left to ``torch.autograd.detect_anomaly``.

    Args:
        net: any module that takes ``[T, batch, ...]``.
        inputs: what it is called with.

    Raises:
        ValueError: naming the first layer, and for NaN and infinity the first step, counted from 0.

    Warns:
        NetworkWarning: with `inputs`, of each layer that passes no gradient on.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), hb.IF())
    >>> x = torch.ones(5, 3, 2)
    >>> hb.check(net, x)  # nothing is wrong
    <hb.check of Sequential>
    >>> x[2, 0, 1] = torch.nan
    >>> with hb.check(net):
    ...     net(x)
    Traceback (most recent call last):
    ValueError: NaN or infinity came in with the input of the network, at step 2
    """
    checking = Checking(net)
    if inputs is not None:
        checking.call(inputs)
    return checking


class _Entered(NamedTuple):
    """A module that is being called."""

    module: nn.Module
    name: str
    given: list[Tensor]
    in_each_step: bool


class Checking:
    """What :func:`check` gives: a context manager."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._hooks = ExitStack()
        self._calls: list[_Entered] = []
        self._of_linear: Tensor | None = None
        """What the last linear layer outside of EachStep gave."""
        self._axes: tuple[int, ...] = ()
        """The sizes of time and batch."""

    def __repr__(self) -> str:
        return f"<hb.check of {type(self._net).__name__}>"

    def __enter__(self) -> Self:
        of_cells = {part for cell in self._net.modules() if isinstance(cell, Cell) for part in cell.modules()}
        for name, module in self._net.named_modules():
            if module not in of_cells:  # with a hook on it, a cell would run by the reference loop
                self._hooks.callback(module.register_forward_pre_hook(self._entering(name)).remove)
                self._hooks.callback(module.register_forward_hook(self._left).remove)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._hooks.close()
        self._of_linear = None
        if error is not None and self._calls:
            module, name, given, *_ = self._calls[-1]
            shapes = ", ".join(str([*tensor.shape]) for tensor in given)
            error.add_note(f"in {_said(module, name)} of the network, given {shapes or 'no tensor'}")
        self._calls.clear()

    def call(self, inputs: Tensor) -> None:
        """Calls the network once, forward and backward, and undoes what that changes."""
        learned = [parameter for parameter in self._net.parameters() if parameter.requires_grad]
        forget(self._net)
        with left_as_it_was(self._net, inputs), self, torch.enable_grad():
            made = self._net(inputs.detach().requires_grad_(inputs.is_floating_point()))
            sums = [t.sum() for t in tree_leaves(made) if isinstance(t, Tensor) and t.requires_grad]
            if sums and learned:
                torch.autograd.grad(torch.stack(sums).sum(), learned, allow_unused=True)

    def _entering(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            given = [tensor for tensor in tree_leaves(args) if isinstance(tensor, Tensor)]
            if module is self._net:
                self._calls.clear()
                self._axes = tuple(given[0].shape[:2]) if given else ()
            in_each_step = any(isinstance(call.module, EachStep) for call in self._calls)
            self._calls.append(_Entered(module, name, given, in_each_step))
            where = "the network" if module is self._net else _said(module, name)
            self._check_finite(given, f"the input of {where}")
            if given and not in_each_step:
                self._check_axes(module, name, given[0])

        return enter

    def _left(self, module: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        _, name, given, in_each_step = self._calls[-1]
        tensors = [tensor for tensor in tree_leaves(made) if isinstance(tensor, Tensor)]
        bad = next((n for n, parameter in module.named_parameters() if not _is_finite(parameter)), None)
        why = "made of finite numbers" if bad is None else f"whose {bad} holds it"
        self._check_finite(tensors, f"the output of {_said(module, name)}, {why}")
        cell = module.step() if isinstance(module, Recurrent) else getattr(module, "cell", None)
        if isinstance(cell, Cell) and len(args) == 1 and not ambient.active:
            with torch.no_grad():
                states = record(cell, given[0])
            for state, values in states.items():
                self._check_finite([values], f"state {state} of {_said(module, name)}")
        self._calls.pop()
        if isinstance(module, nn.Linear) and not in_each_step and tensors:
            self._of_linear = tensors[0]

    def _check_finite(self, tensors: list[Tensor], where: str) -> None:
        bad = next((tensor for tensor in tensors if not _is_finite(tensor)), None)
        if bad is None:
            return
        step = ""
        if bad.ndim and len(self._axes) == 2:
            first = int((~bad.isfinite()).reshape(len(bad), -1).any(1).nonzero()[0])
            step = f", at step {first // self._axes[1] if self._calls[-1].in_each_step else first}"
        self._refuse(f"NaN or infinity came in with {where}{step}")

    def _check_axes(self, module: nn.Module, name: str, given: Tensor) -> None:
        """Raises if `module`, outside of EachStep, takes the batch for features or channels."""
        if isinstance(module, Stateful) and given is self._of_linear and given.ndim == 2:
            self._refuse(f"{_said(module, name)}: {features_first('a linear layer', given)}")
        if len(self._axes) < 2 or tuple(given.shape[:2]) != self._axes or given.ndim < 3:
            return
        read = f"was given {[*given.shape]}, {self._axes[0]} steps of {self._axes[1]} samples"
        if isinstance(module, nn.Flatten) and module.start_dim in (0, 1):
            self._refuse(
                f"{_said(module, name)} joins the batch with what follows: it {read}; use nn.Flatten(2)"
            )
        kind = type(module).__name__
        if not isinstance(module, _KNOW_NO_TIME) or (self._axes[1] == 1 and str(given.ndim - 2) in kind):
            return  # of one sample, time may have been joined with the batch, and there be one channel
        self._refuse(
            f"{_said(module, name)} knows no time and takes axis 1 for channels: it {read}; "
            f"hb.EachStep({kind}(...)) calls it at each step of [T, batch, ...], and hb.optimize(net, x) "
            "makes a network of torch.nn take time"
        )

    def _refuse(self, reason: str) -> NoReturn:
        self._calls.clear()
        raise ValueError(reason)


_KNOW_NO_TIME = (
    *(nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
"""Modules whose axis 1 is channels. (Those of three dimensions may take time for one of them.)"""


def _said(module: nn.Module, name: str) -> str:
    return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())
