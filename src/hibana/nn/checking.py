"""``hb.check``: at which layer of a network NaN, infinity or a wrong axis comes in, for debugging.

Hooks look at each call of each module, so what runs within is slow; nothing is looked at otherwise. Hooks
rather than a graph of layers: the networks to check include those that can't be traced.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import NetworkWarning, call_context, record
from hibana.compiler.explain import describe_axes, preserve_state
from hibana.compiler.gradient_warning import NO_DERIVATIVE, has_derivative
from hibana.compiler.torch_layers import faster_layers, has_channel_axis, layer_list, role_of, spatial_dims
from hibana.nn.each_step import EachStep
from hibana.nn.over_steps import OverSteps
from hibana.nn.running import Stateful
from hibana.runtime.torch_internals import tree_leaves

__all__ = ["check"]


def check(net: nn.Module, inputs: Tensor | None = None) -> "Checking":
    """Names the layer and step at which NaN or infinity first comes in, and the layer with a wrong axis.

    As ``with hb.check(net): ...`` it looks at every call of `net` within the block. With `inputs` it calls
    `net` with them once, forward and backward, and leaves parameters, gradients, buffers and the state of
    the random generator as they were. The result's text then says how many steps and samples were read, which
    layers pass no gradient on, and which layers :func:`hibana.optimize` would make faster.

    A spiking neuron that was once given NaN never spikes again, and its output is a finite 0. So the inputs
    and outputs of every layer are looked at, and the states of its neurons, which run again from rest, step
    by step. Of axes it finds a module of ``torch.nn`` that takes axis 1 for channels and is called with
    ``[T, batch, ...]`` outside of :class:`hibana.EachStep`, an ``nn.Flatten`` that joins the batch, and a
    layer over time behind a linear layer whose input has two dimensions. It can't see a batch that stands
    before time: compare the number of steps and samples that it reports. NaN in gradients is left to
    ``torch.autograd.detect_anomaly``.

    Args:
        net: any module that takes ``[T, batch, ...]``.
        inputs: what it is called with.

    Raises:
        ValueError: naming the first layer, and for NaN and infinity the first step, counted from 0.

    Warns:
        NetworkWarning: with `inputs`, of each layer that passes no gradient on.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4, bias=False), hb.IF())
    >>> _ = torch.nn.init.ones_(net[0].weight)
    >>> x = torch.ones(5, 3, 2)
    >>> hb.check(net, x)
    <hb.check of Sequential>
    read as 5 steps of 3 samples: time is the first axis, the batch the second
    nothing is wrong
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

        self._layers: list[tuple[str, Cell, Tensor, Tensor]] = []
        """The calls of layers of neurons: their description, cell, input and output."""
        self._read_as = ""
        self.hints: list[str] = []
        """What can be improved, after a call with inputs: one sentence for each layer."""

    def __repr__(self) -> str:
        lines = [f"<hb.check of {type(self._net).__name__}>"]
        if self._read_as:
            lines += [self._read_as, *(self.hints or ["nothing is wrong"])]
        return "\n".join(lines)

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
        """Calls the network once, forward and backward, undoes the changes, and notes the hints."""
        learned = [parameter for parameter in self._net.parameters() if parameter.requires_grad]
        self._read_as = describe_axes(inputs)
        with preserve_state(self._net, inputs), self, torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NetworkWarning)  # hints name the layer too
            made = self._net(inputs.detach().requires_grad_(inputs.is_floating_point()))
            sums = [t.sum() for t in tree_leaves(made) if isinstance(t, Tensor) and t.requires_grad]
            ends = [t for *_, given, made in self._layers for t in (given, made) if t.requires_grad]
            grads: dict[int, Tensor | None] = {}
            if sums and (learned or ends):
                found = torch.autograd.grad(torch.stack(sums).sum(), [*learned, *ends], allow_unused=True)
                grads = dict(zip(map(id, ends), found[len(learned) :], strict=True))
        self.hints = [
            f"{layer} {hint}"
            for layer, cell, given, made in self._layers
            if (hint := _without_gradient(cell, given, made, grads))
        ]
        for hint in self.hints:
            warnings.warn(hint, NetworkWarning, stacklevel=4)
        faster = faster_layers(self._net)
        if faster and any(given.numel() >= MANY for *_, given, _ in self._layers):
            self.hints.append(f"hb.optimize(net, x) would make {layer_list(faster)} faster")
        self._layers.clear()

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
        step = getattr(module, "step", None)
        cell = step() if callable(step) else getattr(module, "cell", None)
        if self._read_as and isinstance(cell, Cell) and given and tensors:
            self._layers.append((_said(module, name), cell, given[0], tensors[0]))
        if isinstance(cell, Cell) and len(args) == 1 and not call_context.run_active:
            with torch.no_grad():
                states = record(cell, given[0])
            for state, values in states.items():
                self._check_finite([values], f"state {state} of {_said(module, name)}")
        self._calls.pop()
        if role_of(module) == "linear" and not in_each_step and tensors:
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
            self._refuse(
                f"{_said(module, name)}: axis 1 of its input {[*given.shape]} is the features of a linear "
                "layer, but a layer over time takes [T, batch, ...]: hb.encode.constant(x, T) shows samples "
                "for T steps, x[:, None] is a batch of one sample over time; hb.EachStep(module) calls a "
                "module without time at each step"
            )
        if len(self._axes) < 2 or tuple(given.shape[:2]) != self._axes or given.ndim < 3:
            return
        read = f"was given {[*given.shape]}, {self._axes[0]} steps of {self._axes[1]} samples"
        if role_of(module) == "reshape" and getattr(module, "start_dim", None) in (0, 1):
            self._refuse(
                f"{_said(module, name)} joins the batch with what follows: it {read}; use nn.Flatten(2)"
            )
        kind = type(module).__name__
        if not has_channel_axis(module) or spatial_dims(module) == 3 or isinstance(module, OverSteps):
            return  # a layer of three dimensions may take time for one of them
        if self._axes[1] == 1 and given.ndim - 2 == spatial_dims(module):
            return  # of one sample, time may have been joined with the batch, and there be one channel
        self._refuse(
            f"{_said(module, name)} knows no time and takes axis 1 for channels: it {read}; "
            f"hb.EachStep({kind}(...)) calls it at each step of [T, batch, ...], and hb.optimize(net, x) "
            "makes a network of torch.nn take time"
        )

    def _refuse(self, reason: str) -> NoReturn:
        self._calls.clear()
        raise ValueError(reason)


MANY = 1 << 20
"""Numbers of a layer's input, over all steps, from which on a call takes milliseconds."""
ENOUGH_STEPS = 4
"""Minimum steps for a layer to be reported as silent: networks train on 4 and more."""


def _without_gradient(cell: Cell, given: Tensor, made: Tensor, grads: dict[int, Tensor | None]) -> str | None:
    """Why no gradient came from the output `made` of a layer to its input `given`; None if one did."""
    if not given.requires_grad:
        return None
    if not has_derivative(made):
        return f"passes no gradient on: {NO_DERIVATIVE}"
    arrived, passed = (grads.get(id(tensor)) for tensor in (made, given))
    if arrived is None or not arrived.any() or (passed is not None and passed.any()):
        return None
    if given.shape[0] < ENOUGH_STEPS or not given.numel():
        return None
    return (
        f"passed no gradient on: in {given.shape[0]} steps no neuron came to where the surrogate of "
        f"{cell.state_names()[-1]} has a slope; lower the threshold, scale the weights with "
        "hibana.train.scale_to_rate, or take a surrogate with a slope below the threshold too, such as "
        "hb.surrogate.ATan()"
    )


def _said(module: nn.Module, name: str) -> str:
    return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())
