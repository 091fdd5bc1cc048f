"""``hb.run``: runs a network from a state, and returns the last state.

The state belongs to the call: layers look up the current run, and no module changes. So
several threads may run a network at once, others may call it without a state, and runs may be nested.
"""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from hibana.cells import peer_aliases as foreign
from hibana.compiler import State, call_context
from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.torch_layers import TORCH_LAYERS, add_hint
from hibana.runtime import torch_internals

__all__ = ["LooksBack", "Stateful", "check_knows_no_time", "evaluating", "run"]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """A context that sets `net` to evaluation mode; its end restores the mode of each module."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Stateful(nn.Module):
    """The base class of layers over time, whose state :func:`run` passes on."""

    holds_step = False
    """Whether the inner modules are parts of the layer's step, and compiled with it."""

    def forward(self, inputs: Tensor, state: State | None = None, *, return_state: bool = False) -> Any:
        """The outputs for `inputs`, both ``[T, ...]``; with `return_state` also the last state."""
        if type(inputs) is not Tensor and is_fx_proxy(inputs):
            return fx_leaf_call(self, inputs, state, return_state=return_state)
        if call_context.run_active:
            return served(self, inputs, state, return_state)
        return self.over_time(inputs, state) if return_state else self.outputs_over_time(inputs, state)

    def __getattr__(self, name: str) -> Any:
        """The parameter, buffer or module called `name`.

        Raises AttributeError if none exists; for methods with which other libraries reset layers, the message
        tells what to do in hibana.
        """
        if name not in foreign.METHODS:
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(f"{error}; {foreign.METHODS[name]}", name=name, obj=self) from None

    @abstractmethod
    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The outputs for `inputs`, both ``[T, ...]``, from `state` (None: at rest), and the last state."""
        raise NotImplementedError

    def outputs_over_time(self, inputs: Tensor, state: State | None) -> Tensor:
        """The outputs of :meth:`over_time`; a layer may compute them faster without the last state."""
        return self.over_time(inputs, state)[0]


class LooksBack(Stateful):
    """A layer whose state is the last :attr:`reach` steps of its input."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """The number of steps before the current step that an output depends on."""

    @abstractmethod
    def outputs_after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        """The outputs for `inputs`, ``[T, ...]``.

        Args:
            history: the inputs before them, ``[reach, ...]``; zeros if None.
            inputs: the input sequence.

        Raises:
            ValueError: if the layer does not take inputs of this shape.
        """

    def outputs_over_time(self, inputs: Tensor, state: State | None) -> Tensor:
        """The outputs for `inputs`, ``[T, batch, ...]``, after the steps in `state`."""
        return self.outputs_after(None if state is None else self._history(state, inputs), inputs)

    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The outputs for `inputs` after the steps in `state`, and the last steps, ``[reach, ...]``."""
        history = None if state is None else self._history(state, inputs)
        outputs, steps = self.outputs_after(history, inputs), inputs
        if len(inputs) < self.reach:
            zeros = inputs.new_zeros(self.reach, *inputs.shape[1:])
            steps = torch.cat([zeros if history is None else history, inputs])
        return outputs, (steps[len(steps) - self.reach :],)

    def feedback(self) -> Callable[[list[Tensor]], Tensor]:
        """A function from the inputs of the last ``reach + 1`` steps, ``[batch, ...]``, to the last output.

        The function is for calls step by step while parameters are constant.
        """

        def last_output(inputs: list[Tensor]) -> Tensor:
            """The output at the last of the steps."""
            steps = torch.stack(inputs)
            return self.outputs_after(steps[:-1], steps[-1:])[0]

        return last_output

    @property
    def shortest(self) -> int:
        """A number of last steps, at most `reach`, on which no output depends."""
        return 0

    def feedback_of_block(self, size: int) -> Callable[[list[Tensor]], Tensor]:
        """As :meth:`feedback`, to the last output and the ``size - 1`` outputs that follow it."""

        def outputs(inputs: list[Tensor]) -> Tensor:
            """The outputs of `size` steps, at most ``shortest + 1``; so none depends on the zeros."""
            zeros = inputs[-1].new_zeros(size - 1, *inputs[-1].shape)
            return self.outputs_after(torch.stack(inputs[:-1]), torch.cat([inputs[-1][None], zeros]))

        return outputs

    def _history(self, state: State, inputs: Tensor) -> Tensor:
        """The steps in `state`, in the dtype of `inputs`; raises ValueError if their shape is wrong."""
        shape = (self.reach, *inputs.shape[1:])
        if not isinstance(state, tuple) or len(state) != 1 or state[0].shape != shape:
            is_tuple = isinstance(state, tuple)
            form = [tuple(tensor.shape) for tensor in state] if is_tuple else type(state).__name__
            raise ValueError(f"state must be one tensor of the last steps, {shape}, got {form}")
        return state[0].to(inputs.dtype)


def run(
    net: nn.Module, inputs: Tensor, state: dict[str, State] | None = None
) -> tuple[Any, dict[str, State]]:
    """Runs a network with hibana layers from a state, and returns its output and last state.

    The state belongs to this call: other calls of `net`, in this thread or others, start at rest. The state
    is part of the graph of gradients; detach it between calls that each have a backward pass (otherwise torch
    raises "backward through the graph a second time"). Parts of `net` can't use ``torch.utils.checkpoint`` in
    a run with gradients, because their state would be lost when they are computed again.

    Args:
        net: any module; it is called as ``net(inputs)``.
        inputs: the input of `net`, time first.
        state: the state that an earlier call returned; every layer starts at rest if ``None``.

    Returns:
        The network's output, and a dictionary from each hibana layer's name in `net` to its state, a
        tuple of plain tensors. A layer that is called more than once in a pass has one entry per call:
        ``name``, ``name#1``, …. States of a nested run are not included.

    Raises:
        RuntimeError: if a layer is called in a checkpoint, with gradients.
        ValueError: if `state` does not have exactly one entry for each layer that was called; or `net`
            contains states that a run can't pass on: recurrent layers of torch, layers that are not
            submodules, calls of :func:`hibana.unroll`, and calls of layers with an explicit state.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), hb.IF())
    >>> x = torch.rand(6, 1, 3)
    >>> expected, _ = hb.run(net, x)
    >>> first, state = hb.run(net, x[:2])
    >>> second, state = hb.run(net, x[2:], state)
    >>> torch.equal(expected, torch.cat([first, second]))
    True
    """
    if torch_internals.is_compiler_loaded():
        _exclude_from_graphs()
    run_ = _Run(_layer_names(net), state, torch.is_grad_enabled())
    try:
        with call_context.RunContext(run_):
            outputs = net(inputs)
    except (RuntimeError, ValueError) as error:
        add_hint(net, error)
        raise
    if state is not None and (unknown := state.keys() - run_.last_states.keys()):
        raise ValueError(f"state has entries for layers that were not called: {', '.join(sorted(unknown))}")
    return outputs, run_.last_states


def _layer_names(net: nn.Module) -> dict[Stateful, str]:
    """The name of each layer over time in `net`.

    Raises ValueError if `net` contains a recurrent layer of torch.
    """
    names: dict[Stateful, str] = {}
    visited: set[nn.Module] = set()
    stack = [("", net)]  # as `named_modules`, which takes five times as long
    while stack:
        name, module = stack.pop()
        if module in visited:
            continue
        visited.add(module)
        if isinstance(module, Stateful):
            names[module] = name
        elif isinstance(module, TORCH_LAYERS["recurrent"]):
            raise ValueError(  # noqa: TRY004 - the net is of the right type, and holds one that is refused
                f"net must hold no recurrent layer of torch: the state of {name or 'net'!r}, "
                f"{type(module).__name__}, would be lost; call it outside of the network that is run, "
                "or use hibana.Recurrent"
            )
        if children := module._modules:
            prefix = f"{name}." if name else ""
            stack += [(prefix + key, child) for key, child in reversed(children.items()) if child is not None]
    return names


class _Run:
    """One call of :func:`run`: the first and the last states of its layers, and how often each was called."""

    def __init__(
        self, names: dict[Stateful, str], state: dict[str, State] | None, differentiable: bool
    ) -> None:
        self.names = names
        self.state = state
        self.differentiable = differentiable
        self.hooks = torch_internals.saved_tensor_hooks()
        self.calls: dict[str, int] = {}
        self.last_states: dict[str, State] = {}

    def serve(self, layer: Stateful, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Calls `layer` from its state in this run; returns the outputs and the last state."""
        name = self.names.get(layer)
        if name is None:
            raise ValueError(
                f"{type(layer).__name__} was called within hibana.run but is no module of the network: "
                "its state has no name; register it, or run it by a hibana.run of its own"
            )
        if state is not None:
            raise ValueError(
                f"layer {name!r} was given a state within hibana.run, which carries the states of layers "
                "itself; leave the state out, or run the layer by a hibana.run of its own"
            )
        if self.differentiable and self._is_checkpointed():
            raise RuntimeError(
                f"layer {name!r} was called in a checkpoint within hibana.run, which would compute it again "
                "without its state; call hibana.run within the checkpointed function instead"
            )
        call = self.calls[name] = self.calls.get(name, -1) + 1
        key = name if call == 0 else f"{name}#{call}"
        if self.state is not None and key not in self.state:
            keys = ", ".join(self.state) or "none"
            raise ValueError(f"state has no entry for layer {key!r}; it has {keys}")
        with call_context.RunContext(None):
            outputs, last_state = layer.over_time(inputs, None if self.state is None else self.state[key])
        self.last_states[key] = last_state
        return outputs, last_state

    def _is_checkpointed(self) -> bool:
        """Whether a layer is called within a checkpoint of torch that was entered during this run."""
        if (
            hooks := torch_internals.saved_tensor_hooks()
        ) is not None and hooks != self.hooks:  # torch.distributed's checkpoints set them too
            return getattr(hooks[0], "__qualname__", "").startswith("_checkpoint_hook.")
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not run.__code__:
            if frame.f_code.co_filename == checkpoint.__file__:
                return True
            frame = frame.f_back
        return False


def served(layer: Stateful, inputs: Tensor, state: State | None, return_state: bool) -> Any:
    """The result of `layer` while :func:`hibana.run` is active in this thread or another one.

    In this thread, the run passes the layer its state from the call before, and stores the last one.
    """
    run_: _Run | None = call_context.current_run()
    outputs, last_state = layer.over_time(inputs, state) if run_ is None else run_.serve(layer, inputs, state)
    return (outputs, last_state) if return_state else outputs


def _exclude_from_graphs() -> None:
    """Makes graphs of ``torch.compile`` call :func:`served` instead of tracing it."""
    global served
    if not getattr(served, "_torchdynamo_disable", False):
        reason = "hibana.run carries the states of layers"
        served = torch.compiler.disable(served, reason=reason)  # type: ignore[no-untyped-call] # torch's own


def check_knows_no_time(argument: str, module: nn.Module) -> None:
    """Raises ValueError if `module`, the value of `argument`, contains a layer over time."""
    over_time = (named for named in module.named_modules() if isinstance(named[1], Stateful))
    for name, layer in over_time:
        raise ValueError(
            f"{argument} must hold no layer over time: {name or argument!r} is {type(layer).__name__}, "
            "which would take what it is given, one step or all with the batch, for its sequence; "
            "put it beside, as in nn.Sequential(hibana.EachStep(nn.Conv2d(...)), hibana.IF())"
        )
