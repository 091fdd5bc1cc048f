"""Compares random networks with sparse synapses with dense matrices and a loop over time."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import hibana as hb
from fuzz.differ import Counts, Different
from fuzz.steps import SURROGATES
from hibana.spikes.sparse import Connections

__all__ = ["Sparse", "compare", "sparse"]

PRECISION = {torch.float32: 1e-3, torch.float64: 1e-10}
"""Largest error of a gradient relative to its largest number; float32 sums lose digits over the steps."""
FORMS = ["recurrent", "with delays", "two products", "on the input", "layers"]


@dataclass(frozen=True)
class Sparse:
    """A random case: a network with sparse synapses, its sizes and its input."""

    form: str
    neurons: int
    batch: int
    steps: int
    synapses: int
    """Number of synapses; two may have the same source and target."""
    is_sorted: bool
    """Whether the synapses of a source are in the order of their targets."""
    bias: bool
    surrogate: int
    gradient_scale: float
    piece: int
    """Steps of the first of two calls; if it has all steps, there is only one call."""
    threads: int
    seed: int


@st.composite
def sparse(draw: st.DrawFn) -> Sparse:
    """Draws a network of up to 150 neurons with zero to 1.5 synapses per pair of neurons."""
    steps = draw(st.integers(1, 8))
    neurons = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 20, 63, 64, 65, 150]))
    return Sparse(
        form=draw(st.sampled_from(FORMS)),
        neurons=neurons,
        batch=draw(st.sampled_from([1, 2, 3, 17])),
        steps=steps,
        synapses=int(draw(st.sampled_from([0, 0.01, 0.05, 0.3, 1.5])) * neurons * neurons),
        is_sorted=draw(st.booleans()),
        bias=draw(st.booleans()),
        surrogate=draw(st.integers(0, len(SURROGATES) - 1)),
        gradient_scale=draw(st.sampled_from([1.0, 0.5, 0.0])),
        piece=draw(st.integers(1, steps)),
        threads=draw(st.sampled_from([1, 2, 4])),
        seed=draw(st.integers(0, 10_000)),
    )


def compare(case: Sparse, counts: Counts) -> None:
    """Raises :class:`Different` if the spikes or the gradients are not those of dense matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        for dtype in PRECISION:
            _compare(case, dtype)
    finally:
        torch.set_num_threads(threads)
    counts.compared += 1


def _compare(case: Sparse, dtype: torch.dtype) -> None:
    torch.manual_seed(case.seed)
    network = _Network(case).to(dtype)
    x = (torch.randint(-8, 24, (case.steps, case.batch, case.neurons)) / 16).to(dtype).requires_grad_()
    leaves, weighting = [x, *network.parameters()], torch.randn(x.shape, dtype=dtype)
    unused = sum(0 * leaf.sum() for leaf in leaves)  # without synapses the outputs depend on no leaf
    outputs, expected = network(x), network.dense(x)
    if not torch.equal(outputs, expected):
        raise Different(f"{(outputs != expected).sum()} outputs differ in {dtype}\n{case}")
    grads, dense_grads = (
        torch.autograd.grad((y * weighting).sum() + unused, leaves, retain_graph=True)
        for y in (outputs, expected)
    )
    for name, grad, dense_grad in zip(
        ("x", *dict(network.named_parameters())), grads, dense_grads, strict=True
    ):
        error, largest = (
            float(nn.functional.pad(n.abs().flatten(), (0, 1)).max()) for n in (grad - dense_grad, dense_grad)
        )
        if not error <= PRECISION[dtype] * max(1.0, largest):
            raise Different(f"the gradient of {name} differs by {error:.1e} in {dtype}\n{case}")


class _Cell(hb.Cell):
    """A neuron whose values are multiples of powers of two, with further sparse synapses in some forms."""

    def __init__(self, case: Sparse) -> None:
        super().__init__()
        self.surrogate = SURROGATES[case.surrogate]()
        self.on_input = _synapses(case) if case.form == "on the input" else None
        self.second = _synapses(case) if case.form == "two products" else None

    def forward(self, x, v, s):
        if self.on_input is not None:
            x = x + self.on_input(x)
        if self.second is not None:
            x = x - self.second(s) * 0.5
        v = 0.5 * v * (1 - s) + x
        return v, self.surrogate(v - 1)


class _Network(nn.Module):
    def __init__(self, case: Sparse) -> None:
        super().__init__()
        self.case, synapses = case, _synapses(case, 4 if case.form == "with delays" else 0)
        self.layer = hb.Recurrent(_Cell(case), case.neurons, synapses, gradient_scale=case.gradient_scale)
        is_deep = case.form == "layers"
        self.below, self.above = (_synapses(case, d) if is_deep else nn.Identity() for d in (0, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        net = nn.Sequential(self.below, self.layer, self.above)
        if self.case.piece == self.case.steps:
            return net(inputs)
        first, state = hb.run(net, inputs[: self.case.piece])
        return torch.cat([first, hb.run(net, inputs[self.case.piece :], state)[0]])

    def dense(self, inputs: Tensor) -> Tensor:
        """Computes the outputs with a loop over time and dense matrices."""
        cell, v, spikes = self.layer.cell, torch.zeros_like(inputs[0]), [torch.zeros_like(inputs[0])]
        for current in _dense(self.below, [*inputs]):
            feedback = _dense(self.layer.recurrent, spikes)[-1]
            x = current + feedback.detach() + (feedback - feedback.detach()) * self.case.gradient_scale
            x = x if cell.on_input is None else x + _dense(cell.on_input, [x])[0]
            x = x if cell.second is None else x - _dense(cell.second, spikes[-1:])[0] * 0.5
            v = 0.5 * v * (1 - spikes[-1]) + x
            spikes.append(cell.surrogate(v - 1))
        return torch.stack(_dense(self.above, spikes[1:]))


def _synapses(case: Sparse, longest_delay: int = 0) -> hb.SparseLinear:
    """Random synapses whose weights are multiples of 1/32 and whose biases are 1/8."""
    n = case.neurons
    sources, targets = torch.randint(n, (2, case.synapses))
    delays = torch.randint(longest_delay + 1, (case.synapses,))
    order = ((sources * 8 + delays) * n + targets * case.is_sorted).argsort(stable=True)
    starts = nn.functional.pad(torch.bincount(sources, minlength=n).cumsum(0), (1, 0))
    stored_delays = delays[order].to(torch.uint8) if longest_delay else None
    weights = torch.randint(-32, 33, (case.synapses,)) / 32
    connections = Connections(starts, targets[order].int(), stored_delays, weights)
    layer = hb.SparseLinear(n, n, connections, case.bias)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, 0.125)
    return layer


def _dense(layer: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs of `layer` for each step of `inputs`, with one dense matrix per delay."""
    if not isinstance(layer, hb.SparseLinear):
        return inputs
    results = [torch.zeros_like(step) for step in inputs]
    for delay in range(1 if layer.delays is None else 5):
        weight = layer.weight if layer.delays is None else layer.weight * (layer.delays == delay)
        index = layer.targets.long(), torch.repeat_interleave(layer.row_starts.diff())
        size = layer.out_features, layer.in_features
        matrix = weight.new_zeros(size).index_put(index, weight, accumulate=True)
        for t in range(delay, len(inputs)):
            results[t] = results[t] + inputs[t - delay] @ matrix.T
    return [result if layer.bias is None else result + layer.bias for result in results]
