"""A spiking network in plain PyTorch: a neuron, a loop over time, and training on digits.

    python examples/tiny.py

Read the file from top to bottom; each part uses only the parts above it. It needs PyTorch,
scikit-learn (for the digits) and Matplotlib (for the raster), and does not import hibana.
`tests/whole/test_tiny.py` compares every part with hibana; docs/tiny.md explains it.

Shapes: T time steps, B samples, N neurons.
"""

import math
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

Derivative = Callable[[Tensor], Tensor]  # dH/dx at each element of x
State = tuple[Tensor, Tensor]  # potentials and spikes of one step

# 1. A step function whose derivative is chosen
#
# A neuron sends a spike if its potential is above a threshold: with x the potential
# minus the threshold, H(x) = 1 if x > 0, else 0. The true derivative of H is 0 almost
# everywhere, so gradient descent would learn nothing through it. The backward pass
# therefore uses another derivative, called a surrogate. The forward pass does not
# change.


class Heaviside(torch.autograd.Function):
    """H(x) forward; the gradient times `derivative(x)` backward."""

    @staticmethod
    def forward(ctx, x: Tensor, derivative: Derivative) -> Tensor:
        ctx.save_for_backward(x)
        ctx.derivative = derivative
        return (x > 0).to(x.dtype)  # H(0) = 0: no spike at the threshold

    @staticmethod
    def backward(ctx, grad_spikes: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad_spikes * ctx.derivative(x), None  # None: a function has no gradient


# 2. Two surrogates
#
# The article chooses H itself as the derivative: only neurons that spiked learn. A
# smooth bell around the threshold also reaches neurons that almost spiked.


def step(x: Tensor) -> Tensor:
    """The article's derivative: 1 where x > 0, 0 elsewhere."""
    return (x > 0).to(x.dtype)


def atan(x: Tensor, alpha: float = 2.0) -> Tensor:
    """The derivative of arctan(pi/2 * alpha * x) / pi, a bell of height alpha/2."""
    scaled = x * (0.5 * math.pi * alpha)
    return (0.5 * alpha) / (scaled * scaled + 1.0)


# 3. One step of a neuron
#
# A neuron keeps two numbers between time steps: its membrane potential v and its last
# output s, which is 1 after a spike and 0 otherwise. The factor (1 - s_previous) resets
# the potential to 0 after a spike. The returned potential is the value before the next
# reset, so that it shows how far it rose above the threshold.


class IF(nn.Module):
    """Integrate-and-fire, as in the article: v sums the inputs since the last spike.

        v = v_previous * (1 - s_previous) + input_
        s = H(v - threshold)

    With `detach_reset`, the backward pass treats s_previous as a constant. Otherwise the
    gradient that flows from a step through the reset to the step before is multiplied by
    -v_previous, and can grow step by step.
    """

    def __init__(
        self,
        threshold: float = 1.0,
        derivative: Derivative = step,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.derivative = derivative
        self.detach_reset = detach_reset

    def forward(self, input_: Tensor, v_previous: Tensor, s_previous: Tensor) -> State:
        if self.detach_reset:
            s_previous = s_previous.detach()
        v = v_previous * (1 - s_previous) + input_
        return v, Heaviside.apply(v - self.threshold, self.derivative)


class LIF(IF):
    """Leaky integrate-and-fire: in each step, v also loses the fraction 1/tau of its value.

        v = v_previous * (1 - s_previous) * (1 - 1/tau) + input_
        s = H(v - threshold)

    The time constant `tau` is in time steps. The other arguments are those of `IF`.
    """

    def __init__(self, tau: float = 2.0, **options: float | Derivative) -> None:
        super().__init__(**options)
        self.tau = tau

    def forward(self, input_: Tensor, v_previous: Tensor, s_previous: Tensor) -> State:
        if self.detach_reset:
            s_previous = s_previous.detach()
        v = v_previous * (1 - s_previous) * (1 - 1 / self.tau) + input_
        return v, Heaviside.apply(v - self.threshold, self.derivative)


# 4. The loop over time
#
# A sequence has its time axis first. The loop calls the step once per time step and
# passes the state on. Autograd records all steps, so a later call of backward() goes
# back through the loop: backpropagation through time.


def over_time(neuron: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials and spikes of `neuron` for `inputs`, each [T, ...], starting from 0."""
    v = s = torch.zeros_like(inputs[0])
    potentials, spikes = [], []
    for input_ in inputs:
        v, s = neuron(input_, v, s)
        potentials.append(v)
        spikes.append(s)
    return torch.stack(potentials), torch.stack(spikes)


# 5. A network
#
# Weights lie between layers of neurons, as in any other network; nn.Linear acts on the
# last axis, so one call serves all time steps. The last layer does not spike: it sums
# its input, and its potentials are the scores of the classes. Nothing is kept between
# calls: every call starts from 0.


class Network(nn.Module):
    """Weights, spiking neurons, weights, and a readout that sums over time."""

    def __init__(self, features: int, hidden: int, classes: int, neuron: nn.Module):
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.neuron = neuron
        self.output = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Potentials [T, B, classes] and spikes [T, B, hidden] for [T, B, features]."""
        _, spikes = over_time(self.neuron, self.hidden(inputs))
        currents = self.output(spikes)
        v = torch.zeros_like(currents[0])
        potentials = []
        for current in currents:
            v = v + current
            potentials.append(v)
        return torch.stack(potentials), spikes


# 6. Data
#
# scikit-learn contains 1,797 digits of 8 x 8 pixels. The last 360 are by other writers
# than the first 1,437. An image has no time axis, so every step gets the same image.


def digits(steps: int) -> tuple[Tensor, Tensor]:
    """All digits as inputs [T, B, 64] with values in [0, 1], and their labels [B]."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32) / 16
    return images.expand(steps, -1, -1), torch.tensor(labels)


# 7. Training
#
# The mean potential over time is one score per class, and the loss is the usual cross-
# entropy of these scores. backward() runs through the readout, the weights, the loop
# over time, and the surrogate.


def scores(potentials: Tensor) -> Tensor:
    """The mean potential over time, [B, classes]."""
    return potentials.mean(0)


def train(net: Network, inputs: Tensor, labels: Tensor, epochs: int) -> None:
    """Changes the weights of `net` by Adam; prints each epoch's loss and firing rate."""
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for epoch in range(epochs):
        losses, rates = [], []
        for batch in torch.randperm(len(labels)).split(32):  # samples per batch
            potentials, spikes = net(inputs[:, batch])
            loss = nn.functional.cross_entropy(scores(potentials), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            rates.append(spikes.mean().item())
        loss, rate = sum(losses) / len(losses), sum(rates) / len(rates)
        print(f"epoch {epoch + 1}: loss {loss:.3f}, {rate:.1%} of the neurons spike")


@torch.no_grad()
def accuracy(net: Network, inputs: Tensor, labels: Tensor) -> float:
    """The fraction of samples whose largest score is the label's."""
    potentials, _ = net(inputs)
    return (scores(potentials).argmax(1) == labels).float().mean().item()


# 8. A raster
#
# A raster shows when each neuron spiked: one mark per spike, time to the right, one row
# per neuron.


def raster(spikes: Tensor) -> Figure:
    """A figure with one mark per spike of `spikes` [T, N]."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps, neurons = spikes.nonzero(as_tuple=True)
    axes.scatter(steps, neurons, s=8, marker="|")
    axes.set(xlabel="Time step", ylabel="Neuron", xlim=(-0.5, len(spikes) - 0.5))
    return figure


# 9. All together


def one_neuron() -> None:
    """Prints the steps of one IF and one LIF neuron, and a gradient through time."""
    inputs = torch.full([8], 0.4, requires_grad=True)
    for name, neuron in (("IF", IF()), ("LIF", LIF(tau=3.0))):
        potentials, spikes = over_time(neuron, inputs)
        print(row(f"{name} potential", potentials))
        print(row(f"{name} spikes", spikes))
    _, spikes = over_time(IF(detach_reset=True), inputs)
    (torch.arange(8) * spikes).sum().backward()  # a spike at step t counts t in this loss
    print(row("IF gradient", inputs.grad))


def row(name: str, values: Tensor) -> str:
    """A line of text with `name` and one number per time step."""
    return f"{name:13}" + "".join(f"{value:6.2f}" for value in values.tolist())


def main() -> None:
    one_neuron()
    torch.manual_seed(0)
    inputs, labels = digits(steps=8)
    net = Network(64, 128, 10, IF(derivative=atan, detach_reset=True))
    train(net, inputs[:, :1437], labels[:1437], epochs=10)
    correct = accuracy(net, inputs[:, 1437:], labels[1437:])
    print(f"{correct:.1%} of the test digits are right")
    _, spikes = net(inputs[:, -1:])
    raster(spikes[:, 0]).savefig("tiny-raster.png", dpi=150)


if __name__ == "__main__":
    main()
