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

PRECISION = 1e-10
"""Of a gradient in float64, to its largest number."""
FORMS = ["recurrent", "with delays", "two products", "on the input", "layers"]


@dataclass(frozen=True)
class Sparse:
    """A network with sparse synapses, its sizes and its input."""

    form: str = "recurrent"
    neurons: int = 8
    batch: int = 2
    steps: int = 6
    synapses: int = 20
    """With repetitions, in any order."""
    is_sorted: bool = True
    """Whether each row is in the order of its targets."""
    longest_delay: int = 0
    bias: bool = True
    surrogate: int = 0
    gradient_scale: float = 1.0
    piece: int = 6
    """Steps of the first of two calls; all for one call."""
    threads: int = 2
    seed: int = 0


@st.composite
def sparse(draw: st.DrawFn) -> Sparse:
    """A network of up to 150 neurons, from no synapses to more than one per pair of neurons."""
    form, steps = draw(st.sampled_from(FORMS)), draw(st.integers(1, 8))
    neurons = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 20, 63, 64, 65, 150]))
    share = draw(st.sampled_from([0, 0.01, 0.05, 0.3, 1.5]))
    return Sparse(
        form=form,
        neurons=neurons,
        batch=draw(st.sampled_from([1, 2, 3, 17])),
        steps=steps,
        synapses=int(share * neurons * neurons),
        is_sorted=draw(st.booleans()),
        longest_delay=draw(st.integers(1, 4)) if form == "with delays" else 0,
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
        _compare(of)
    finally:
        torch.set_num_threads(threads)
    counts.compared += 1


def _compare(of: Sparse) -> None:
    torch.manual_seed(of.seed)
    network = _Network(of)
    x = torch.randint(-8, 24, (of.steps, of.batch, of.neurons)) / 16
    for dtype in (torch.float32, torch.float64):
        network, inputs = network.to(dtype), x.to(dtype).requires_grad_()
        leaves = [inputs, *network.parameters()]
        outputs, expected = network(inputs), network.dense(inputs)
        if not torch.equal(outputs, expected):
            raise Different(f"{(outputs != expected).sum()} outputs differ in {dtype}\n{of}")
    seen = torch.randn(outputs.shape, dtype=torch.float64)
    grads, expected_grads = (
        # without synapses the outputs depend on no leaf, so each is added times zero
        torch.autograd.grad((y * seen).sum() + sum(0 * leaf.sum() for leaf in leaves), leaves)
        for y in (outputs, expected)
    )
    names = "input", *(name for name, _ in network.named_parameters())
    for name, grad, expected_grad in zip(names, grads, expected_grads, strict=True):
        error, largest = (_largest(numbers) for numbers in (grad - expected_grad, expected_grad))
        if not error <= PRECISION * max(1.0, largest):
            raise Different(f"the gradient of {name} differs by {error:.1e}\n{of}")


def _largest(numbers: Tensor) -> float:
    """The largest absolute value, 0 without numbers; NaN if there is one."""
    return float(nn.functional.pad(numbers.abs().flatten(), (0, 1)).max())


class _Cell(hb.Cell):
    """A neuron on a dyadic grid, with further sparse synapses of its own."""

    def __init__(self, of: Sparse) -> None:
        super().__init__()
        self.surrogate = SURROGATES[of.surrogate]()
        self.on_input = _synapses(of, 0) if of.form == "on the input" else None
        self.second = _synapses(of, 0) if of.form == "two products" else None

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
        self.of = of
        self.layer = hb.Recurrent(
            _Cell(of), of.neurons, _synapses(of, of.longest_delay), gradient_scale=of.gradient_scale
        )
        self.below, self.above = (
            _synapses(of, delay) if of.form == "layers" else nn.Identity() for delay in (0, 2)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        net = nn.Sequential(self.below, self.layer, self.above)
        if self.of.piece == self.of.steps:
            return net(inputs)
        first, state = hb.run(net, inputs[: self.of.piece])
        return torch.cat([first, hb.run(net, inputs[self.of.piece :], state)[0]])

    def dense(self, inputs: Tensor) -> Tensor:
        """The same outputs, by a loop over time and dense matrices."""
        cell = self.layer.cell
        currents = inputs if self.of.form != "layers" else _dense(self.below, [*inputs])
        v = s = torch.zeros_like(inputs[0])
        spikes = [s]
        for current in currents:
            x = current
            feedback = _dense(self.layer.recurrent, spikes)[-1]
            x = x + feedback.detach() + (feedback - feedback.detach()) * self.of.gradient_scale
            x = x if cell.on_input is None else x + _dense(cell.on_input, [x])[0]
            x = x if cell.second is None else x - _dense(cell.second, [s])[0] * 0.5
            v = 0.5 * v * (1 - s) + x
            s = cell.surrogate(v - 1)
            spikes.append(s)
        outputs = spikes[1:]
        return torch.stack(outputs if self.of.form != "layers" else _dense(self.above, outputs))


def _synapses(of: Sparse, longest_delay: int) -> hb.SparseLinear:
    """Random synapses with weights and biases on a dyadic grid."""
    n = of.neurons
    sources, targets = torch.randint(n, (2, of.synapses))
    delays = torch.randint(longest_delay + 1, (of.synapses,))
    order = ((sources * 8 + delays) * n + targets * of.is_sorted).argsort(stable=True)
    connections = Connections(
        nn.functional.pad(torch.bincount(sources, minlength=n).cumsum(0), (1, 0)),
        targets[order].int(),
        delays[order].to(torch.uint8) if longest_delay else None,
        torch.randint(-32, 33, (of.synapses,)) / 32,
    )
    layer = hb.SparseLinear(n, n, connections, bias=of.bias)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, 0.125)
    return layer


def _dense(layer: hb.SparseLinear, inputs: list[Tensor]) -> list[Tensor]:
    """The sums over the synapses of `layer` at each step of `inputs`, by one dense matrix per delay."""
    n = layer.in_features
    sources = torch.repeat_interleave(layer.row_starts.diff())
    results = [inputs[0].new_zeros(inputs[0].shape) for _ in inputs]
    for delay in range(1 if layer.delays is None else 5):
        weight = layer.weight if layer.delays is None else layer.weight * (layer.delays == delay)
        matrix = weight.new_zeros(n * n).index_add(0, layer.targets.long() * n + sources, weight).view(n, n)
        for t in range(delay, len(inputs)):
            results[t] = results[t] + inputs[t - delay] @ matrix.T
    return [result if layer.bias is None else result + layer.bias for result in results]
