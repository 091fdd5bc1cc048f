"""``hb.run``: a network from a state, and the state that it ends in.

The state travels with the call: layers ask which run they are called within, and no module is changed. So a
network may be run in several threads at once, called plainly beside that, and run within a run.
"""

import sys
from abc import abstractmethod
from collections.abc import Iterator
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
from hibana.runtime.torch_internals import saved_tensor_hooks

__all__ = ["Stateful", "check_knows_no_time", "evaluating", "run"]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Within it `net` is in evaluation mode; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Stateful(nn.Module):
    """A layer over time: what a run carries the state of."""

    holds_step = False
    """Whether the modules in it are parts of its step, which is compiled with them."""

    def forward(self, inputs: Tensor, state: State | None = None, *, return_state: bool = False) -> Any:
        """What it emits over `inputs`, ``[T, ...]``; with `return_state` also its last state."""
        if is_fx_proxy(inputs):
            return fx_leaf_call(self, inputs, state, return_state=return_state)
        if call_context.run_active:
            return served(self, inputs, state, return_state)
        outputs, ended = self.over_time(inputs, state)
        return (outputs, ended) if return_state else outputs

    def __getattr__(self, name: str) -> Any:
        """What a module holds under `name`; of what other libraries reset layers by, what to do here.

        Raises:
            AttributeError: if there is nothing.
        """
        if name not in foreign.METHODS:
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(f"{error}; {foreign.METHODS[name]}", name=name, obj=self) from None

    def is_cell_alone(self) -> bool:
        """Whether a call of this class is one of its cell over time, and no more."""
        return False

    @abstractmethod
    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What it emits over `inputs`, ``[T, ...]``, from `state`, and the state it ends in."""
        raise NotImplementedError


def run(
    net: nn.Module, inputs: Tensor, state: dict[str, State] | None = None
) -> tuple[Any, dict[str, State]]:
    """Runs a network that holds hibana layers, from a state, and returns the state it ended in.

    The state is that of this call alone: other calls of `net`, in this thread or others, begin at rest. It
    has its gradient's graph: where each call has a backward of its own, detach it between them (torch says
    "backward through the graph a second time" otherwise).
    Parts of `net` can't be checkpointed (``torch.utils.checkpoint``) in a run that is differentiated, since
    their state would be lost when they are computed again.

    Args:
        net: any module; it is called as ``net(inputs)``.
        inputs: what `net` takes, time first.
        state: what an earlier call returned; every layer at rest if ``None``.

    Returns:
        The network's output, and a dictionary from each hibana layer's name in `net` to its state, a
        tuple of plain tensors. A layer that is called more than once in a pass has one entry a call:
        ``name``, ``name#1``, …. What a run within this one carries is its own, and not among these.

    Raises:
        ValueError: if `state` does not have exactly one entry for each layer that was called; or `net` has
            states that can't be carried so: recurrent layers of torch, layers that are not modules in it,
            calls of :func:`hibana.unroll`, and of layers with a state of their own.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), hb.IF())
    >>> x = torch.rand(6, 1, 3)
    >>> whole, _ = hb.run(net, x)
    >>> first, state = hb.run(net, x[:2])
    >>> rest, state = hb.run(net, x[2:], state)
    >>> torch.equal(whole, torch.cat([first, rest]))
    True
    """
    if "torch._dynamo" in sys.modules:
        _leave_to_python()
    going = _Run(_names(net), state, torch.is_grad_enabled())
    try:
        with call_context.RunContext(going):
            outputs = net(inputs)
    except (RuntimeError, ValueError) as error:
        add_hint(net, error)
        raise
    if state is not None and (unknown := state.keys() - going.ended.keys()):
        raise ValueError(f"state has entries for layers that were not called: {', '.join(sorted(unknown))}")
    return outputs, going.ended


def _names(net: nn.Module) -> dict[Stateful, str]:
    """The layers over time in `net`, named as by ``named_modules``, in a fifth of its time.

    Raises:
        ValueError: if there is a recurrent layer of torch among its modules.
    """
    found: dict[Stateful, str] = {}
    seen = set[nn.Module]()
    left: list[tuple[str, nn.Module]] = [("", net)]
    while left:
        name, module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, Stateful):
            found[module] = name
        elif isinstance(module, TORCH_LAYERS["recurrent"]):
            raise ValueError(  # noqa: TRY004 - the net is of the right type, and holds one that is refused
                f"net must hold no recurrent layer of torch: the state of {name or 'net'!r}, "
                f"{type(module).__name__}, would be lost; call it outside of the network that is run, "
                "or use hibana.Recurrent"
            )
        if inner := module._modules:
            prefix = f"{name}." if name else ""
            left += [(prefix + key, each) for key, each in reversed(inner.items()) if each is not None]
    return found


class _Run:
    """One run: where its layers begin, how often each was called, and where they ended."""

    def __init__(
        self,
        names: dict[Stateful, str],
        state: dict[str, State] | None,
        differentiable: bool,
    ) -> None:
        self.names = names
        self.state = state
        self.differentiable = differentiable
        self.hooks = saved_tensor_hooks()
        self.calls: dict[str, int] = {}
        self.ended: dict[str, State] = {}

    def serve(self, layer: Stateful, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One call of `layer`, from this run's state."""
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
            there = ", ".join(self.state) or "none"
            raise ValueError(f"state has no entry for layer {key!r}; it has {there}")
        with call_context.RunContext(None):
            outputs, ended = layer.over_time(inputs, None if self.state is None else self.state[key])
        self.ended[key] = ended
        return outputs, ended

    def _is_checkpointed(self) -> bool:
        """Whether a layer is called within a checkpoint of torch that was entered during this run."""
        if (hooks := saved_tensor_hooks()) is not None and hooks != self.hooks:  # of torch.distributed, too
            return getattr(hooks[0], "__qualname__", "").startswith("_checkpoint_hook.")
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not run.__code__:
            if frame.f_code.co_filename == checkpoint.__file__:
                return True
            frame = frame.f_back
        return False


def served(layer: Stateful, inputs: Tensor, state: State | None, return_state: bool) -> Any:
    """A call of `layer` while some thread is within a run, perhaps not this one."""
    going: _Run | None = call_context.current_run()
    serve = layer.over_time if going is None else lambda x, begun: going.serve(layer, x, begun)
    outputs, ended = serve(inputs, state)
    return (outputs, ended) if return_state else outputs


def _leave_to_python() -> None:
    """Has graphs compiled by torch call :func:`served` rather than look into it."""
    global served
    if not getattr(served, "_torchdynamo_disable", False):
        reason = "hibana.run carries the states of layers"
        served = torch.compiler.disable(served, reason=reason)  # type: ignore[no-untyped-call] # torch's own


def check_knows_no_time(argument: str, module: nn.Module) -> None:
    """Raises a ValueError if `module`, given as `argument`, holds a layer over time."""
    over_time = (named for named in module.named_modules() if isinstance(named[1], Stateful))
    for name, inner in over_time:
        raise ValueError(
            f"{argument} must hold no layer over time: {name or argument!r} is {type(inner).__name__}, "
            "which would take what it is given, one step or all with the batch, for its sequence; "
            "put it beside, as in nn.Sequential(hibana.EachStep(nn.Conv2d(...)), hibana.IF())"
        )
