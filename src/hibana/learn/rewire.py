"""Rewiring during training: synapses of ``hibana.SparseLinear`` move, and their number stays constant.

Call ``step()`` after each ``optimizer.step()``. The weight of a layer stays the same ``Parameter``;
``row_starts``, ``targets`` and ``delays`` change in place.

In distributed training, all processes must use the same `seed`: weights and gradients are equal in all
processes, so the same synapses move.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, final

import numpy as np
import torch
from numpy.random import Generator, default_rng
from torch import Tensor, distributed, nn

from hibana.nn.sparse_linear import SparseLinear
from hibana.spikes.sparse import Connections

__all__ = ["SET", "DeepR", "RigL", "draw_absent"]

BLOCK = 1 << 20
"""Numbers of a dense gradient that :class:`RigL` computes together."""


class Rewiring:
    """Moves synapses of the :class:`hibana.SparseLinear` layers of `net` whose weights are trained.

    A pair is a source neuron and a target neuron, as the number ``source * out_features + target``.
    """

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        self.optimizer, self.seed = optimizer, seed
        self.steps = 0
        """Number of finished calls of :meth:`step`."""
        modules = net.named_modules()
        self.layers = {n: m for n, m in modules if isinstance(m, SparseLinear) and m.weight.requires_grad}
        if not self.layers:
            raise ValueError("net must hold a hibana.SparseLinear whose weight is trained, got none")
        for name, layer in self.layers.items():
            if layer.weight not in self._groups():
                raise ValueError(f"optimizer must train the weight of layer {name!r}: pass net.parameters()")
            if layer.weight.numel() > layer.in_features * layer.out_features:
                raise ValueError(f"layer {name!r} has more synapses than pairs of neurons: {layer}")

    @torch.no_grad()
    def step(self) -> None:
        """Moves synapses; call it after each ``optimizer.step()``."""
        generator = default_rng((self.seed * 1_000_003 + self.steps) % 2**63)
        for name, layer in self.layers.items():
            self._rewire(name, layer, generator)
        self.steps += 1

    def state_dict(self) -> dict[str, int]:
        """The number of finished steps; it and the seed determine all further random numbers."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the result of :meth:`state_dict`."""
        self.steps = state["steps"]

    def _rewire(self, name: str, layer: SparseLinear, generator: Generator) -> None:
        """Moves the synapses of `layer`, called `name`, in one step."""
        raise NotImplementedError

    def _groups(self) -> dict[Tensor, dict[str, Any]]:
        """The optimizer's group of each parameter."""
        return {p: group for group in self.optimizer.param_groups for p in group["params"]}

    def _replace(
        self, layer: SparseLinear, removed: Tensor, choose: Callable[[Tensor, int], Tensor]
    ) -> Tensor:
        """Replaces synapses by synapses of weight zero, which take over the delays of the replaced synapses.

        The other synapses keep their weights and moments, at new indices because rows stay sorted. Moments of
        new synapses are zero.

        Args:
            layer: the layer.
            removed: indices of the replaced synapses, ascending.
            choose: a function that chooses where new synapses are. A pair is the number ``source *
                out_features + target``. Its arguments are the pairs of the other synapses, ascending and
                without duplicates, and the number of new synapses. It returns the pairs of the new synapses.

        Returns:
            The indices of the new synapses.

        Raises:
            ValueError: if the optimizer's state has a tensor of another shape than the weight; then nothing
                changes.
        """
        width, tensors = layer.out_features, self._tensors(layer.weight)
        is_new = torch.zeros_like(layer.targets, dtype=torch.bool).index_fill_(0, removed, True)
        pairs = layer.sources * width + layer.targets
        pairs[removed] = choose(torch.unique(pairs[~is_new]), len(removed))
        index = torch.arange(len(pairs), dtype=torch.int64, device=pairs.device)
        row_starts, targets, delays, old_index = Connections.from_pairs(
            pairs // width, pairs % width, (layer.in_features, width), layer.delays, index
        )
        assert old_index is not None
        layer.row_starts.copy_(row_starts)
        layer.targets.copy_(targets)
        if layer.delays is not None and delays is not None:
            layer.delays.copy_(delays)
        for tensor in tensors:
            tensor.copy_(tensor.index_fill(0, removed, 0)[old_index])
        return is_new[old_index].nonzero()[:, 0]

    def _tensors(self, weight: Tensor) -> list[Tensor]:
        """All tensors with one number per synapse: the weight, its gradient, and its moments.

        Raises:
            ValueError: if the optimizer's state has a tensor of another shape.
        """
        tensors: list[Tensor] = [weight] if weight.grad is None else [weight, weight.grad]
        for name, value in self.optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                tensors.append(value)
            elif isinstance(value, Tensor) and value.ndim:
                raise ValueError(
                    f"optimizer must keep one number per weight, {name!r} is {tuple(value.shape)}"
                )
        return tensors


@final
class DeepR(Rewiring):
    """DEEP R: a synapse is removed when its weight changes its sign, and a random synapse is added.

        theta = sign w - lr l1 + sqrt(2 lr temperature) noise      with w after the optimizer's step
        theta < 0: the synapse is removed                          sign: of w before the optimizer's step

    Each synapse has a fixed sign, drawn at random for a new synapse. New synapses have the weight zero, and
    are drawn uniformly among all pairs of neurons without a synapse. The sign bit of the weight stores the
    sign, also of a zero (+0.0 or -0.0), so a state dictionary contains it.

    Args:
        net: a network with :class:`hibana.SparseLinear` layers.
        optimizer: the optimizer that trains their weights, with the learning rate lr.
        temperature: strength of the weights' random walk; None for noise of a third of the l1 term,
            ``temperature = lr l1^2 / 18``.
        l1: strength of the l1 regularization.
        seed: seed of the random numbers.

    Raises:
        ValueError: if `net` has no trained sparse layer, the optimizer does not train its weight, or
            `temperature` or `l1` is negative.

    Source: Bellec, Kappel, Maass & Legenstein (2018), *Deep rewiring: training very sparse deep networks*.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(hb.SparseLinear(20, 50, 0.1), hb.LIF(), torch.nn.Linear(50, 2))
    >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    >>> rewiring = hb.learn.DeepR(net, optimizer)
    >>> net((torch.rand(10, 4, 20) < 0.3).float()).square().mean().backward()
    >>> optimizer.step()
    >>> rewiring.step()
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        temperature: float | None = None,
        l1: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(net, optimizer, seed)
        for name, value in (("temperature", temperature), ("l1", l1)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
        self.temperature, self.l1 = temperature, l1
        self._signs: dict[str, Tensor] = {}
        """The signs of the synapses before the optimizer's step, by layer."""
        optimizer.register_step_pre_hook(self._store_signs)

    def _store_signs(self, *_: object) -> None:
        """Stores the signs before the optimizer's step."""
        self._signs = {name: _signs(layer.weight.detach()) for name, layer in self.layers.items()}

    def _rewire(self, name: str, layer: SparseLinear, generator: Generator) -> None:
        """Replaces the synapses of `layer` whose weight changed its sign."""
        weight, lr = layer.weight, float(self._groups()[layer.weight]["lr"])
        sign = self._signs.pop(name, _signs(weight))  # absent if the optimizer's step was skipped
        temperature = lr * self.l1**2 / 18 if self.temperature is None else self.temperature
        noise = torch.from_numpy(generator.standard_normal(len(weight), dtype=np.float32)).to(weight)
        theta = sign * weight - lr * self.l1 + math.sqrt(2 * lr * temperature) * noise
        weight.copy_(theta.copysign(sign))
        removed = (theta < 0).nonzero()[:, 0]
        if len(removed):
            new = self._replace(layer, removed, _random_choice(layer, generator))
            new_signs = torch.from_numpy(generator.choice([-1.0, 1.0], len(new)))
            weight[new] = weight[new].copysign(new_signs.to(weight))


class _Periodic(Rewiring):
    """Replaces the weakest synapses of each layer every few steps."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        fraction: float = 0.3,
        every: int = 100,
        end: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(net, optimizer, seed)
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie in (0, 1), got {fraction!r}")
        for name, value in (("every", every), ("end", end)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a number of steps, at least 1, got {value!r}")
        self.fraction, self.every, self.end = fraction, every, end

    @property
    def _is_due(self) -> bool:
        """Whether the present step moves synapses."""
        number = self.steps + 1
        return number % self.every == 0 and (self.end is None or number < self.end)


@final
class SET(_Periodic):
    """Sparse evolutionary training: every few steps, the weakest synapses are replaced by random ones.

    The same fraction of the positive weights and of the negative weights is removed: those nearest to zero.
    As many new synapses of weight zero are drawn uniformly among all pairs of neurons without a synapse.

    Args:
        net: a network with :class:`hibana.SparseLinear` layers.
        optimizer: the optimizer that trains their weights.
        fraction: the part of the synapses that moves, in (0, 1).
        every: number of steps between two moves; the paper moves synapses once per epoch.
        end: the step from which no synapse moves; None to move them until the end of the training.
        seed: seed of the random numbers.

    Raises:
        ValueError: if `net` has no trained sparse layer, the optimizer does not train its weight, or an
            argument is outside its range.

    Source: Mocanu et al. (2018), *Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science*.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(hb.SparseLinear(20, 50, 0.1), hb.LIF())
    >>> rewiring = hb.learn.SET(net, torch.optim.SGD(net.parameters(), lr=0.1), every=500)
    """

    def _rewire(self, name: str, layer: SparseLinear, generator: Generator) -> None:
        """Replaces the weakest synapses of `layer` by random ones, if the step moves synapses."""
        if self._is_due:
            negative = layer.weight.signbit()
            weakest = [_weakest(layer, sign.nonzero()[:, 0], self.fraction) for sign in (negative, ~negative)]
            self._replace(layer, torch.cat(weakest).sort().values, _random_choice(layer, generator))


@final
class RigL(_Periodic):
    """RigL: every few steps, the weakest synapses are replaced by those with the largest gradients.

        fraction_t = fraction / 2 (1 + cos(pi t / end))

    The synapses with the smallest weights are removed. As many are added, with weight zero, at the pairs of
    neurons without a synapse where the loss's gradient has the largest magnitude; a removed synapse may come
    back. At the steps that move synapses, these gradients take the time of a dense layer, but not its memory.

    Args:
        net: a network with :class:`hibana.SparseLinear` layers without delays.
        optimizer: the optimizer that trains their weights.
        end: the step from which no synapse moves; the paper uses 3/4 of all steps.
        fraction: the part of the synapses that moves at first, in (0, 1).
        every: number of steps between two moves.

    Raises:
        ValueError: if `net` has no trained sparse layer or one with delays, the optimizer does not train its
            weight, or an argument is outside its range.

    Source: Evci, Gale, Menick, Castro & Elsen (2020), *Rigging the lottery: making all tickets winners*.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(hb.SparseLinear(20, 50, 0.1), hb.LIF())
    >>> rewiring = hb.learn.RigL(net, torch.optim.SGD(net.parameters(), lr=0.1), end=7500)
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        end: int,
        fraction: float = 0.3,
        every: int = 100,
    ) -> None:
        super().__init__(net, optimizer, fraction=fraction, every=every, end=end)
        self._calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.layers}
        """Inputs and output gradients of each call of a layer in the present step, ``[rows, features]``."""
        for name, layer in self.layers.items():
            if layer.delays is not None:
                raise ValueError(f"layer {name!r} has delays, which RigL can't choose; use DeepR or SET")
            layer.register_forward_hook(partial(self._record, name))

    def _record(self, name: str, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Stores the inputs of a call of layer `name`, and in the backward the gradient of its output."""
        if self._is_due and output.requires_grad:
            rows = inputs[0].detach().flatten(0, -2)
            calls = self._calls[name]
            output.register_hook(  # type: ignore[no-untyped-call] # torch's hook
                lambda grad: calls.append((rows, grad.detach().flatten(0, -2)))
            )

    def _rewire(self, name: str, layer: SparseLinear, generator: Generator) -> None:
        """Replaces the weakest synapses of `layer` by those with the largest gradients, if it is time.

        Raises:
            RuntimeError: naming the layer, if its gradients at this step are unknown.
        """
        if not self._is_due:
            return
        if not self._calls[name]:
            raise RuntimeError(
                f"layer {name!r} has no output gradient at this step: RigL needs a backward before each step"
            )
        assert self.end is not None
        fraction = self.fraction / 2 * (1 + math.cos(math.pi * (self.steps + 1) / self.end))
        all_synapses = torch.arange(len(layer.weight), device=layer.weight.device, dtype=torch.int64)
        removed = _weakest(layer, all_synapses, fraction).sort().values
        self._replace(layer, removed, partial(_strongest_absent, self._calls[name], layer))
        self._calls[name].clear()


def _strongest_absent(
    calls: list[tuple[Tensor, Tensor]], layer: SparseLinear, pairs: Tensor, count: int
) -> Tensor:
    """The `count` pairs outside of `pairs` with the largest gradients, in blocks of source neurons.

    Args:
        calls: inputs and output gradients of each call, ``[rows, features]``.
        layer: the layer.
        pairs: the pairs that are not chosen, ascending.
        count: the number of pairs to choose.
    """
    width, step = layer.out_features, max(1, BLOCK // layer.out_features)
    strongest, sizes = pairs.new_empty(0), layer.weight.new_empty(0)
    for first in range(0, layer.in_features, step):
        products = [x[:, first : first + step].T.to(sizes) @ grad.to(sizes) for x, grad in calls]
        grads = torch.stack(products).sum(0)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(grads)
        start, end = torch.searchsorted(pairs, pairs.new_tensor([first * width, (first + step) * width]))
        magnitudes = grads.abs().flatten().index_fill_(0, pairs[start:end] - first * width, -1)
        strongest = torch.cat(
            [strongest, torch.arange(len(magnitudes), device=pairs.device, dtype=torch.int64) + first * width]
        )
        sizes, best = torch.cat([sizes, magnitudes]).topk(min(count, len(strongest)))
        strongest = strongest[best]
    return strongest


def _random_choice(layer: SparseLinear, generator: Generator) -> Callable[[Tensor, int], Tensor]:
    """A function that draws pairs of `layer` outside of those in its first argument; see `draw_absent`."""
    return partial(draw_absent, total=layer.in_features * layer.out_features, generator=generator)


def draw_absent(pairs: Tensor, count: int, total: int, generator: Generator) -> Tensor:
    """Different numbers in [0, total) outside of `pairs`, ascending, drawn uniformly.

    Args:
        pairs: different numbers in [0, total), ascending.
        count: how many numbers to draw, at most ``total - len(pairs)``.
        total: the number of all pairs.
        generator: the source of random numbers.

    >>> import numpy, torch
    >>> draw_absent(torch.tensor([0, 2, 3]), 2, 5, numpy.random.default_rng())
    tensor([1, 4])
    """
    chosen = generator.choice(total - len(pairs), count, replace=False, shuffle=False)
    ranks = torch.from_numpy(chosen).to(pairs.device).sort().values  # among all numbers outside of `pairs`
    absent_below = pairs - torch.arange(len(pairs), dtype=torch.int64, device=pairs.device)
    return ranks + torch.searchsorted(absent_below, ranks, right=True)


def _weakest(layer: SparseLinear, synapses: Tensor, fraction: float) -> Tensor:
    """The given fraction of the indices `synapses`: those of the smallest weights."""
    magnitudes = layer.weight[synapses].abs()
    return synapses[magnitudes.topk(int(fraction * len(synapses)), largest=False).indices]


def _signs(weight: Tensor) -> Tensor:
    """1 or -1 for each weight, by its sign bit."""
    return torch.ones_like(weight).copysign(weight)
