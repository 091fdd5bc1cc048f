"""Random sparse cells and networks beside dense matrices and a loop over time."""

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
"""Of a gradient, to its largest number; sums of float32 with both signs lose digits over the steps."""
FORMS = ["recurrent", "with delays", "two products", "on the input", "layers"]


@dataclass(frozen=True)
class Sparse:
    """A network with sparse synapses, its sizes and its input."""

    form: str
    neurons: int
    batch: int
    steps: int
    synapses: int
    """With repetitions; in each row in the order of targets if `is_sorted`, else in any order."""
    is_sorted: bool
    bias: bool
    surrogate: int
    gradient_scale: float
    piece: int
    """Steps of the first of two calls; all for one call."""
    threads: int
    seed: int


@st.composite
def sparse(draw: st.DrawFn) -> Sparse:
    """A network of up to 150 neurons, from no synapses to more than one per pair of neurons."""
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


def compare(of: Sparse, counts: Counts) -> None:
    """Raises :class:`Different` if the spikes or the gradients are not those of dense matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(of.threads)
    try:
        for dtype in PRECISION:
            _compare(of, dtype)
    finally:
        torch.set_num_threads(threads)
    counts.compared += 1


def _compare(of: Sparse, dtype: torch.dtype) -> None:
    torch.manual_seed(of.seed)
    network = _Network(of).to(dtype)
    x = (torch.randint(-8, 24, (of.steps, of.batch, of.neurons)) / 16).to(dtype).requires_grad_()
    leaves, weighting = [x, *network.parameters()], torch.randn(x.shape, dtype=dtype)
    unused = sum(0 * leaf.sum() for leaf in leaves)  # without synapses the outputs depend on no leaf
    outputs, expected = network(x), network.dense(x)
    if not torch.equal(outputs, expected):
        raise Different(f"{(outputs != expected).sum()} outputs differ in {dtype}\n{of}")
    grads, expected_grads = (
        torch.autograd.grad((y * weighting).sum() + unused, leaves, retain_graph=True)
        for y in (outputs, expected)
    )
    for name, grad, right in zip(
        ("x", *dict(network.named_parameters())), grads, expected_grads, strict=True
    ):
        error, largest = (
            float(nn.functional.pad(n.abs().flatten(), (0, 1)).max()) for n in (grad - right, right)
        )
        if not error <= PRECISION[dtype] * max(1.0, largest):
            raise Different(f"the gradient of {name} differs by {error:.1e} in {dtype}\n{of}")


class _Cell(hb.Cell):
    """A neuron on a dyadic grid, with further sparse synapses of its own."""

    def __init__(self, of: Sparse) -> None:
        super().__init__()
        self.surrogate = SURROGATES[of.surrogate]()
        self.on_input = _synapses(of) if of.form == "on the input" else None
        self.second = _synapses(of) if of.form == "two products" else None

    def forward(self, x, v, s):
        if self.on_input is not None:
            x = x + self.on_input(x)
        if self.second is not None:
            x = x - self.second(s) * 0.5
        v = 0.5 * v * (1 - s) + x
        return v, self.surrogate(v - 1)


class _Network(nn.Module):
    def __init__(self, of: Sparse) -> None:
        super().__init__()
        self.of, synapses = of, _synapses(of, 4 if of.form == "with delays" else 0)
        self.layer = hb.Recurrent(_Cell(of), of.neurons, synapses, gradient_scale=of.gradient_scale)
        is_deep = of.form == "layers"
        self.below, self.above = (_synapses(of, d) if is_deep else nn.Identity() for d in (0, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        net = nn.Sequential(self.below, self.layer, self.above)
        if self.of.piece == self.of.steps:
            return net(inputs)
        first, state = hb.run(net, inputs[: self.of.piece])
        return torch.cat([first, hb.run(net, inputs[self.of.piece :], state)[0]])

    def dense(self, inputs: Tensor) -> Tensor:
        """The same outputs, by a loop over time and dense matrices."""
        cell, v, spikes = self.layer.cell, torch.zeros_like(inputs[0]), [torch.zeros_like(inputs[0])]
        for current in _dense(self.below, [*inputs]):
            feedback = _dense(self.layer.recurrent, spikes)[-1]
            x = current + feedback.detach() + (feedback - feedback.detach()) * self.of.gradient_scale
            x = x if cell.on_input is None else x + _dense(cell.on_input, [x])[0]
            x = x if cell.second is None else x - _dense(cell.second, spikes[-1:])[0] * 0.5
            v = 0.5 * v * (1 - spikes[-1]) + x
            spikes.append(cell.surrogate(v - 1))
        return torch.stack(_dense(self.above, spikes[1:]))


def _synapses(of: Sparse, longest_delay: int = 0) -> hb.SparseLinear:
    """Random synapses with weights and biases on a dyadic grid."""
    n = of.neurons
    sources, targets = torch.randint(n, (2, of.synapses))
    delays = torch.randint(longest_delay + 1, (of.synapses,))
    order = ((sources * 8 + delays) * n + targets * of.is_sorted).argsort(stable=True)
    starts = nn.functional.pad(torch.bincount(sources, minlength=n).cumsum(0), (1, 0))
    stored_delays = delays[order].to(torch.uint8) if longest_delay else None
    weights = torch.randint(-32, 33, (of.synapses,)) / 32
    layer = hb.SparseLinear(n, n, Connections(starts, targets[order].int(), stored_delays, weights), of.bias)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, 0.125)
    return layer


def _dense(layer: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The outputs of `layer` at each step of `inputs`, for synapses by one dense matrix per delay."""
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
