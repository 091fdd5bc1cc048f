"""``hb.check``: finds the layer of a network where NaN, infinity or a wrong axis first occurs.

Forward hooks examine each call of each module, which makes the network slow while they are installed. Hooks
also work for networks that can't be traced to a graph of layers.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn

from hibana.cells import Cell, LICell
from hibana.compiler import NetworkWarning, call_context, record
from hibana.compiler.checks import check_module
from hibana.compiler.explain import describe_axes, preserve_state
from hibana.compiler.gradient_warning import NO_DERIVATIVE, has_derivative
from hibana.compiler.torch_layers import faster_layers, has_channel_axis, layer_list, role_of, spatial_dims
from hibana.nn.each_step import EachStep
from hibana.nn.over_steps import OverSteps
from hibana.nn.running import Stateful
from hibana.nn.sparse_linear import SparseLinear
from hibana.runtime.torch_internals import tree_leaves

__all__ = ["check"]


def check(net: nn.Module, inputs: Tensor | None = None) -> "NetworkCheck":
    """Raises an error that names the first layer and step with NaN or infinity, or a layer with a wrong axis.

    ``with hb.check(net): ...`` examines every call of `net` in the block. With `inputs`, this function calls
    `net` once, forward and backward, and restores parameters, gradients, buffers and the state of the random
    generator. The result's text then states the number of steps and samples, the layers that pass no gradient
    on, the layers that :func:`hibana.optimize` would make faster, a network without neurons, and a last layer
    ``LI()`` whose sum over time is large.

    A spiking neuron whose input was NaN once never spikes again, and its output is a finite 0. Therefore the
    inputs and outputs of every layer are examined, and the states of its neurons, which are computed again
    from rest. Parameters with NaN or infinity are named even if all outputs are finite: layers that add the
    weights of spikes do not read those of silent inputs. Three wrong axes are detected: a module of
    ``torch.nn`` that takes axis 1 for channels and is called with ``[T, batch, ...]`` outside of
    :class:`hibana.EachStep`, an ``nn.Flatten`` that joins the batch, and a layer over time after a linear
    layer whose output has two dimensions. Inputs with the batch before time are not detected: compare the
    reported number of steps and samples. For NaN in gradients use ``torch.autograd.detect_anomaly``.

    Args:
        net: any module that takes ``[T, batch, ...]``.
        inputs: inputs of `net`; without them, `net` is only examined in the ``with`` block.

    Raises:
        TypeError: if `net` is not a module.
        ValueError: naming the first layer, and for NaN and infinity the first step, counted from 0.

    Warns:
        NetworkWarning: with `inputs`, for each layer that passes no gradient on.

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
    check_module(net, "net")
    network_check = NetworkCheck(net)
    if inputs is not None:
        network_check.call(inputs)
    return network_check


class _ActiveCall(NamedTuple):
    """A call of a module that has not returned yet."""

    module: nn.Module
    name: str
    inputs: list[Tensor]
    in_each_step: bool


class _NeuronCall(NamedTuple):
    """A finished call of a layer of neurons."""

    layer: str
    """Name and class of the layer, for messages."""
    cell: Cell
    input: Tensor
    output: Tensor


class NetworkCheck:
    """The result of :func:`check`: a context manager that examines the calls of a network."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._hooks = ExitStack()
        self._calls: list[_ActiveCall] = []
        """The active calls, the outermost first."""
        self._linear_output: Tensor | None = None
        """Output of the last linear layer outside of EachStep."""
        self._axes: tuple[int, ...] = ()
        """The sizes of time and batch."""
        self._layers: list[_NeuronCall] = []
        self._read_as = ""
        self.hints: list[str] = []
        """Possible improvements, after a call with inputs: one sentence for each layer."""

    def __repr__(self) -> str:
        lines = [f"<hb.check of {type(self._net).__name__}>"]
        if self._read_as:
            lines += [self._read_as, *(self.hints or ["nothing is wrong"])]
        return "\n".join(lines)

    def __enter__(self) -> Self:
        """Registers the hooks on all modules except cells and their parts."""
        cells = [module for module in self._net.modules() if isinstance(module, Cell)]
        parts_of_cells = {part for cell in cells for part in cell.modules()}
        for name, module in self._net.named_modules():
            if module not in parts_of_cells:  # a hook on a cell would make it run by the reference loop
                self._hooks.callback(module.register_forward_pre_hook(self._before_call(name)).remove)
                self._hooks.callback(module.register_forward_hook(self._after_call).remove)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Removes the hooks; adds the innermost active layer and its input shapes to an error."""
        self._hooks.close()
        self._linear_output = None
        if error is not None and self._calls:
            module, name, inputs, _ = self._calls[-1]
            shapes = ", ".join(str([*tensor.shape]) for tensor in inputs)
            error.add_note(f"in {_layer_text(module, name)} of the network, with inputs {shapes or 'none'}")
        self._calls.clear()

    def call(self, inputs: Tensor) -> None:
        """Calls the network once, forward and backward, restores its state, and sets `hints`."""
        parameters = [parameter for parameter in self._net.parameters() if parameter.requires_grad]
        self._read_as = describe_axes(inputs)
        with preserve_state(self._net, inputs), self, torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NetworkWarning)  # hints name the layer too
            outputs = self._net(inputs.detach().requires_grad_(inputs.is_floating_point()))
            sums = [t.sum() for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
            ends = [t for call in self._layers for t in (call.input, call.output) if t.requires_grad]
            grads: dict[int, Tensor | None] = {}
            if sums and (parameters or ends):
                loss = torch.stack(sums).sum()
                all_grads = torch.autograd.grad(loss, [*parameters, *ends], allow_unused=True)
                grads = dict(zip(map(id, ends), all_grads[len(parameters) :], strict=True))
        self.hints = [
            f"{call.layer} {hint}" for call in self._layers if (hint := _gradient_hint(call, grads))
        ]
        for hint in self.hints:
            warnings.warn(hint, NetworkWarning, stacklevel=4)
        faster = faster_layers(self._net)
        if not any(isinstance(module, Cell | Stateful) for module in self._net.modules()):
            self.hints.append("the network has no neurons: add layers such as hb.LIF()")
        if self._layers and self._layers[-1].output is outputs:
            self.hints += _readout_hints(self._layers[-1])
        if faster and any(call.input.numel() >= LEAST_NUMBERS for call in self._layers):
            self.hints.append(f"hb.optimize(net, x) would make {layer_list(faster)} faster")
        self._layers.clear()

    def _before_call(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A forward pre-hook for the module `name` that checks its inputs."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            """Records the call, and checks the values and, outside of EachStep, the axes of its inputs."""
            inputs = [tensor for tensor in tree_leaves(args) if isinstance(tensor, Tensor)]
            if module is self._net:
                self._calls.clear()
                self._axes = tuple(inputs[0].shape[:2]) if inputs else ()
            in_each_step = any(isinstance(call.module, EachStep) for call in self._calls)
            self._calls.append(_ActiveCall(module, name, inputs, in_each_step))
            layer = "the network" if module is self._net else _layer_text(module, name)
            self._check_finite(inputs, f"the input of {layer}")
            if inputs and not in_each_step:
                self._check_axes(module, name, inputs[0])

        return hook

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """A forward hook that checks the outputs of a module, and the states of its neurons."""
        _, name, inputs, in_each_step = self._calls[-1]
        layer = _layer_text(module, name)
        tensors = [tensor for tensor in tree_leaves(outputs) if isinstance(tensor, Tensor)]
        bad = next((n for n, parameter in module.named_parameters() if not _is_finite(parameter)), None)
        cause = "made of finite numbers" if bad is None else f"whose {bad} holds it"
        self._check_finite(tensors, f"the output of {layer}, {cause}")
        if bad is not None:
            self._raise(f"{bad} of {layer} holds NaN or infinity, where no input reads it")
        has_delays = isinstance(getattr(module, "recurrent", None), Stateful)
        step = None if has_delays else getattr(module, "step", None)
        cell = step() if callable(step) else getattr(module, "cell", None)
        if self._read_as and isinstance(cell, Cell) and inputs and tensors:
            self._layers.append(_NeuronCall(layer, cell, inputs[0], tensors[0]))
        # with delayed feedback, the states are no function of the layer's input and the cell alone
        if isinstance(cell, Cell) and len(args) == 1 and not (has_delays or call_context.run_active):
            with torch.no_grad():
                states = record(cell, inputs[0])
            for state, values in states.items():
                self._check_finite([values], f"state {state} of {layer}")
        self._calls.pop()
        is_linear = role_of(module) == "linear" or isinstance(module, SparseLinear)
        if is_linear and not in_each_step and tensors:
            self._linear_output = tensors[0]

    def _check_finite(self, tensors: list[Tensor], place: str) -> None:
        """Raises a ValueError that names `place` and the step if a tensor has NaN or infinity."""
        bad = next((tensor for tensor in tensors if not _is_finite(tensor)), None)
        if bad is None:
            return
        step = ""
        if bad.ndim and len(self._axes) == 2:
            first = int((~bad.isfinite()).reshape(len(bad), -1).any(1).nonzero()[0])
            step = f", at step {first // self._axes[1] if self._calls[-1].in_each_step else first}"
        self._raise(f"NaN or infinity came in with {place}{step}")

    def _check_axes(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        """Raises a ValueError if `module`, outside of EachStep, takes the batch for features or channels."""
        layer, shape = _layer_text(module, name), [*tensor.shape]
        if isinstance(module, Stateful) and tensor is self._linear_output and tensor.ndim == 2:
            self._raise(
                f"{layer}: axis 1 of its input {shape} is the features of a linear "
                "layer, but a layer over time takes [T, batch, ...]: hb.encode.constant(x, T) shows samples "
                "for T steps, x[:, None] is a batch of one sample over time; hb.EachStep(module) calls a "
                "module without time at each step"
            )
        if len(self._axes) < 2 or tuple(tensor.shape[:2]) != self._axes or tensor.ndim < 3:
            return
        call = f"was called with {shape}, {self._axes[0]} steps of {self._axes[1]} samples"
        if isinstance(module, OverSteps):
            return
        if role_of(module) == "reshape" and getattr(module, "start_dim", None) in (0, 1):
            self._raise(f"{layer} joins the batch with the axes after it: it {call}; use nn.Flatten(2)")
        kind = type(module).__name__
        if not has_channel_axis(module) or spatial_dims(module) == 3:
            return  # a layer of three dimensions may use time as one of them
        if self._axes[1] == 1 and tensor.ndim - 2 == spatial_dims(module):
            return  # a batch of one sample may be joined with time, with axis 1 as the only channel
        self._raise(
            f"{layer} has no time and takes axis 1 for channels: it {call}; "
            f"hb.EachStep({kind}(...)) calls it at each step of [T, batch, ...], and hb.optimize(net, x) "
            "makes a network of torch.nn take time"
        )

    def _raise(self, reason: str) -> NoReturn:
        """Raises a ValueError with `reason`, and forgets the active calls."""
        self._calls.clear()
        raise ValueError(reason)


LEAST_NUMBERS = 1 << 20
"""Numbers in a layer's input, over all steps, with which a call takes milliseconds."""
LEAST_STEPS = 4
"""Minimum steps for a layer to be reported: networks train on 4 and more."""


def _gradient_hint(call: _NeuronCall, grads: dict[int, Tensor | None]) -> str | None:
    """The reason why the gradient of the output is not passed on to the input; ``None`` if it is.

    Args:
        call: a call of a layer of neurons.
        grads: the gradients of inputs and outputs by the ``id`` of the tensor.
    """
    if not call.input.requires_grad:
        return None
    if not has_derivative(call.output):
        return f"passes no gradient on: {NO_DERIVATIVE}"
    output_grad, input_grad = grads.get(id(call.output)), grads.get(id(call.input))
    if output_grad is None or not output_grad.any() or (input_grad is not None and input_grad.any()):
        return None
    if call.input.shape[0] < LEAST_STEPS or not call.input.numel():
        return None
    return (
        f"passed no gradient on: in {call.input.shape[0]} steps no potential was where the surrogate of "
        f"{call.cell.state_names()[-1]} has a slope; lower the threshold, scale the weights with "
        "hibana.train.scale_to_rate, or take a surrogate with a slope below the threshold too, such as "
        "hb.surrogate.ATan()"
    )


LARGEST_SPREAD = 5.0
"""Standard deviation of potentials between classes with which a cross-entropy of ten classes begins at 8."""


def _readout_hints(call: _NeuronCall) -> list[str]:
    """A hint if the last layer of a network sums its input over time, and its potentials are far apart."""
    tau, potentials = getattr(call.cell, "tau", None), call.output.detach()
    is_sum = isinstance(call.cell, LICell) and not isinstance(tau, Tensor) and tau == math.inf
    if not is_sum or potentials.ndim != 3 or potentials.shape[2] < 2:
        return []
    spread = potentials.mean(0).std(1).mean().item()
    if not spread > LARGEST_SPREAD:  # also for NaN, of an empty batch
        return []
    return [
        f"{call.layer} sums its input over {len(potentials)} steps: its mean potentials differ by "
        f"{spread:.0f} between classes, so the cross-entropy of an untrained network begins far above that "
        "of guessing; a time constant such as hb.LI(tau=20) bounds them"
    ]


def _layer_text(module: nn.Module, name: str) -> str:
    """Name and class of a module, for messages."""
    return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__


def _is_finite(tensor: Tensor) -> bool:
    """Whether no value of `tensor` is NaN or infinite."""
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())
