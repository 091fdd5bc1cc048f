"""Networks of hibana for NeuroBench's harness: a model, and what its metrics count.

The harness looks at a network through hooks. Of layers that it does not know, or that are called once for
all time steps, its metrics count nothing, and say 0.0. :class:`Model` has hooks of its own, which give each
metric what it would see of a network that is called step by step.

Nothing is counted here but :class:`NeuronOperations`; metrics are NeuroBench's. Needs the extra
``neurobench``.

Source: Yik et al. (2025), *The NeuroBench framework for benchmarking neuromorphic computing algorithms and
systems*, Nature Communications 16.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hibana.cells import Cell
from hibana.compiler import emits_spikes, record
from hibana.compiler.graph.ops import OPERATIONS
from hibana.compiler.graph.plan import reachable
from hibana.compiler.graph.trace import trace
from hibana.nn import encode
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.window import Window
from hibana.runtime.extras import needing
from hibana.spikes.checks import alike_each_step

with needing("hibana.neurobench"):
    from neurobench.blocks.activation import SUPPORTED_ACTIVATIONS
    from neurobench.blocks.layer import SUPPORTED_LAYERS
    from neurobench.hooks.layer import LayerHook
    from neurobench.hooks.neuron import NeuronHook
    from neurobench.metrics.abstract import AccumulatedMetric
    from neurobench.models import NeuroBenchModel

__all__ = ["Model", "NeuronOperations"]

Neurons = OverTime | Recurrent


@final
class Model(NeuroBenchModel):  # type: ignore[misc] # neurobench ships no types: Any to mypy, see pyproject.toml
    """`net` as the harness calls it: batch first outside, ``[batch, T, ...]``; time first within.

    What is registered:

    - each layer that emits spikes, under its name in `net`, with its spikes and its membrane potential before
      and after each step; a readout (``hb.LI``) with its potential alone, as it activates nothing; torch's
      ``ReLU`` and ``Sigmoid`` as the harness does;
    - each linear layer and convolution, with its input at each step; synapses within a step
      (:class:`hibana.Recurrent`, a cell with an ``nn.Linear``) too. An input that is the same at each step
      counts at each step, also where hibana computes it once.

    While hooks are registered, each layer of neurons runs a second time, step by step, to be looked at.

    Args:
        net: takes and gives ``[T, batch, ...]``; it is put in evaluation mode.
        steps: T, of data without time, ``[batch, ...]``, which are then given at each step; ``None`` for data
            that have it.
        potential: which state of the cells is the membrane potential.
    """

    def __init__(self, net: nn.Module, *, steps: int | None = None, potential: str = "v") -> None:
        super().__init__()
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ValueError(f"steps must be a whole number from 1 on, or None, got {steps!r}")
        self.net, self.steps, self.potential = net.eval(), steps, potential
        self._looking = _Looking()

    def __call__(self, batch: Tensor) -> Tensor:
        """What the network makes of ``[batch, T, ...]``, or ``[batch, ...]`` if it has `steps`: batch first.

        Raises:
            ValueError: if the network does not give ``[T, batch, ...]``.
        """
        inputs = batch.transpose(0, 1) if self.steps is None else encode.constant(batch, self.steps)
        with torch.no_grad(), self._looking.at(len(inputs)):
            outputs: Tensor = self.net(inputs)
        if outputs.shape[:2] != inputs.shape[:2]:
            raise ValueError(
                f"net must give [T, batch, ...], here [{inputs.shape[0]}, {inputs.shape[1]}, ...], got shape "
                f"{tuple(outputs.shape)}; what becomes of the steps is a postprocessor of the benchmark"
            )
        return outputs.transpose(0, 1)

    def __net__(self) -> nn.Module:
        return self.net

    def activation_layers(self) -> list[dict[str, Any]]:
        """The layers of neurons, and torch's activations, each with its name in the network."""
        kinds = (OverTime, Recurrent, *SUPPORTED_ACTIVATIONS)
        return [{"layer_name": n, "layer": m} for n, m in self._outside_of_cells() if isinstance(m, kinds)]

    def connection_layers(self) -> list[nn.Module]:
        """The linear layers and convolutions, those within a step among them."""
        return [module for module in self.net.modules() if isinstance(module, SUPPORTED_LAYERS)]

    def register_hooks(self) -> None:
        """Registers what the metrics look at.

        Raises:
            TypeError: if the network has a layer of which the harness has no count: one that sees several
                steps, or multiplies within a step by what is no module.
            ValueError: if a cell has no state of the name `potential`.
        """
        for name, module in self.net.named_modules():
            if isinstance(module, Window | DelayedLinear):
                raise TypeError(
                    f"layer {name!r} is {type(module).__name__}, which sees several steps at once: "
                    "NeuroBench has no count of it; hibana.metrics.SynOps has"
                )
            if isinstance(module, EachStep):
                self.connection_hooks.append(_Steps(module, self._looking))
        for entry in self.activation_layers():
            name, layer = entry["layer_name"], entry["layer"]
            if isinstance(layer, Neurons):
                self.activation_hooks.append(_Neurons(layer, name, self.potential, self._looking))
            else:
                self.activation_hooks.append(NeuronHook(layer, name))
        within = {
            inner for _, m in self._outside_of_cells() if isinstance(m, Neurons) for inner in m.modules()
        }
        for layer in self.connection_layers():
            self.connection_hooks.append(_Synapses(layer, layer in within, self._looking))

    def _outside_of_cells(self) -> Iterator[tuple[str, nn.Module]]:
        inside = {i for m in self.net.modules() if isinstance(m, Neurons) for i in m.modules() if i is not m}
        return ((name, module) for name, module in self.net.named_modules() if module not in inside)


class _Looking:
    """What hooks know of the call that is going on."""

    def __init__(self) -> None:
        self.steps = 1
        self.copies = 1
        """How many steps what is called now does for."""
        self.recording = False
        """Whether neurons are run again, to be looked at."""

    @contextmanager
    def at(self, steps: int) -> Iterator[None]:
        self.steps, self.copies = steps, 1
        yield

    @contextmanager
    def again(self) -> Iterator[None]:
        self.recording = True
        try:
            yield
        finally:
            self.recording = False


class _Steps(LayerHook):  # type: ignore[misc] # as above
    """Sees where :class:`hibana.EachStep` computes one step for all, and counts nothing itself."""

    def __init__(self, layer: EachStep, looking: _Looking) -> None:
        super().__init__(layer)
        self.looking = looking
        self.after = layer.register_forward_hook(self._ended, always_call=True)

    def hook_fn(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.looking.copies = len(args[0]) if alike_each_step(args[0]) else 1

    def _ended(self, *ignored: Any) -> None:
        self.looking.copies = 1

    def close(self) -> None:
        super().close()
        self.after.remove()


class _Synapses(LayerHook):  # type: ignore[misc] # as above
    """The inputs of a linear layer or convolution, a step each."""

    def __init__(self, layer: nn.Module, within_a_step: bool, looking: _Looking) -> None:
        super().__init__(layer)
        self.within_a_step, self.looking = within_a_step, looking

    def hook_fn(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self.within_a_step:  # of a step that is compiled, its module is called only to be traced
            self.inputs += [args] if self.looking.recording else []
        elif self.looking.copies > 1:
            self.inputs += [args] * self.looking.copies
        else:
            each = max(1, len(args[0]) // self.looking.steps)
            steps = torch.split(args[0], each)
            self.inputs += [(step,) for step in steps]


class _Neurons:
    """Spikes and potentials of a layer over time, kept as those of a layer called step by step."""

    def __init__(self, layer: OverTime | Recurrent, name: str, potential: str, looking: _Looking) -> None:
        self.layer, self.name, self.potential, self.looking = layer, name, potential, looking
        self.spiking = emits_spikes(layer.cell)
        self.cell: Cell = layer.step() if isinstance(layer, Recurrent) else layer.cell
        names = self.cell.state_names()
        if potential not in names:
            raise ValueError(
                f"layer {name!r} has no state {potential!r}, but {', '.join(names)}: say which of them is "
                "the membrane potential, hibana.neurobench.Model(net, potential=...)"
            )
        self.neurons = 0
        self.activation_outputs: list[Tensor] = []
        self.activation_inputs: list[Tensor] = []
        self.pre_fire_mem_potential: list[Tensor] = []
        self.post_fire_mem_potential: list[Tensor] = []
        self.hook = layer.register_forward_hook(self._ran)

    def _ran(self, module: nn.Module, args: tuple[Tensor, ...], outputs: Tensor) -> None:
        inner = [m for m in self.cell.modules() if isinstance(m, SUPPORTED_LAYERS)]
        seen: list[nn.Module] = []
        hooks = [m.register_forward_pre_hook(lambda m, _: seen.append(m)) for m in inner]
        products = _Products()
        try:
            with self.looking.again(), products:
                states = record(self.cell, args[0].detach())
        finally:
            for hook in hooks:
                hook.remove()
        if products.count > len(seen):
            raise TypeError(
                f"a step of layer {self.name!r} multiplies by what is no module: NeuroBench can't count it; "
                "make it an nn.Linear of the cell"
            )
        v = states[self.potential]
        start = self.cell.initial_state(args[0][0])[self.cell.state_names().index(self.potential)]
        self.pre_fire_mem_potential += [start.expand_as(v[0]), *v[:-1].unbind()]
        self.post_fire_mem_potential += v.unbind()
        self.activation_inputs.append(args[0])
        if self.spiking:
            self.activation_outputs.append(outputs)

    def reset(self) -> None:
        """Forgets what was seen."""
        for kept in (self.activation_outputs, self.activation_inputs):
            kept.clear()
        for kept in (self.pre_fire_mem_potential, self.post_fire_mem_potential):
            kept.clear()

    def close(self) -> None:
        """Looks no more."""
        self.hook.remove()


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it so
    """Counts products with a matrix, and convolutions."""

    _KINDS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution"})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self._KINDS
        return func(*args, **(kwargs or {}))


@final
class NeuronOperations(AccumulatedMetric):  # type: ignore[misc] # as above
    """Operations of neurons for a sample, in the place of NeuroBench's, which knows those of snnTorch alone.

        effective = sum over layers of (updates of the membrane potential) * (operations of a step)
        dense     = sum over layers of (neurons * T)                       * (operations of a step)

    An update is counted as NeuroBench's ``MembraneUpdates`` does: a potential that changed, and each at the
    first step. The operations of a step are those of its trace, what is computed twice counted once.
    """

    def __init__(self) -> None:
        super().__init__(requires_hooks=True)
        self.reset()

    def reset(self) -> None:
        """Begins again."""
        self.samples = 0
        self.effective: dict[str, int] = defaultdict(int)
        self.dense: dict[str, int] = defaultdict(int)

    def __call__(self, model: Model, preds: Tensor, data: tuple[Tensor, ...]) -> dict[str, float]:
        """Adds a batch; what it comes to by now."""
        for hook in model.activation_hooks:
            if not isinstance(hook, _Neurons):
                continue
            before, after = hook.pre_fire_mem_potential, hook.post_fire_mem_potential
            pairs = zip(before[1:], after[1:], strict=True)
            updates = after[0].numel() + sum(int((b != a).sum()) for b, a in pairs)
            each = _operations(hook.cell, after[0])
            self.effective[hook.name] += updates * each
            self.dense[hook.name] += len(after) * after[0].numel() * each
        self.samples += len(data[0])
        return self.compute()

    def compute(self) -> dict[str, float]:
        """Both for a sample; NaN where none was seen."""
        samples = self.samples or float("nan")
        return {
            "Effective Neuron Ops": sum(self.effective.values()) / samples,
            "Neuron Dense Ops": sum(self.dense.values()) / samples,
        }


def _operations(cell: Cell, v: Tensor) -> int:
    step = trace(cell, v.shape[1:], v.dtype)
    return sum(value.op in OPERATIONS for value in reachable(step.nexts))
