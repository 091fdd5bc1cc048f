r"""Networks trained by hibana in other simulators: equal spikes, or how many differ.

Two networks 64-64-10 of each kind of neuron are trained on scikit-learn's digits, encoded as spikes over 20
steps. Through NIR they run in snnTorch, Norse, SpikingJelly, sinabs and Rockpool. With weights of 8 bits they
run in XyloSim, the bit-exact simulator of SynSense's Xylo, and with sinabs' quantization for DynapCNN. In an
environment with hibana and the extra ``nir``:

    pip install --no-deps snntorch==1.0.0 norse==1.1.0 spikingjelly==2.0.0 sinabs==3.1.3 rockpool==3.1.0 \
        xylosim==0.1.3 nirtorch loguru bitstruct pbr
    python -m benchmarks.nir_peers

``samna``, the driver of SynSense's chips, is not on PyPI: its names are replaced by empty objects, because
sinabs and Rockpool import them even where nothing of a chip is used.
"""

import copy
import importlib.abc
import importlib.machinery
import math
import sys
import warnings
from collections.abc import Callable
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

import hibana as hb

STEPS, DASH = 20, 2
"""Steps of a sample, and the decay of Xylo's neurons: a quarter, ``2**-DASH``, per step."""


class Samna(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports every module ``samna.*`` as an empty object."""

    def find_spec(self, name, path, target=None):
        is_samna = name.partition(".")[0] in ("samna", "samnagui")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_samna else None

    def create_module(self, spec):
        return MagicMock(__path__=[], __spec__=spec, __name__=spec.name)

    def exec_module(self, module):
        pass


def digits() -> tuple[Tensor, Tensor]:
    """Spikes ``[STEPS, 1797, 64]`` whose rates are the pixels, and the classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    rates = torch.tensor(images, dtype=torch.float32) / 16
    random = torch.rand(STEPS, *rates.shape, generator=torch.Generator().manual_seed(0))
    return (random < rates * 0.7).float(), torch.tensor(classes)


def train(net: nn.Module, spikes: Tensor, classes: Tensor, epochs: int = 6) -> None:
    """Trains `net` by backpropagation through time on the cross-entropy of the spike counts."""
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1297).split(64):
            optimizer.zero_grad()
            counts = net(spikes[:, batch]).sum(0)
            nn.functional.cross_entropy(counts, classes[batch]).backward()
            optimizer.step()


def network(neurons: Callable[[], nn.Module], bias: bool = True) -> nn.Sequential:
    """A network 64-64-10 with `neurons` after each linear layer."""
    return nn.Sequential(nn.Linear(64, 64, bias), neurons(), nn.Linear(64, 10, bias), neurons())


def stepped(net: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs of `net`, which takes a step and a state and returns both."""
    outputs, state = [], None
    for step in inputs:
        output, state = net(step, state)
        outputs.append(output[0] if isinstance(output, tuple) else output)
    return torch.stack(outputs)


def snntorch(graph, inputs: Tensor) -> Tensor:
    from snntorch.import_nir import import_from_nir

    return stepped(import_from_nir(graph), inputs)


def norse(graph, inputs: Tensor) -> Tensor:
    import norse.torch

    return stepped(norse.torch.from_nir(graph, dt=1e-4), inputs)


def spikingjelly(graph, inputs: Tensor) -> Tensor:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return stepped(import_from_nir(graph), inputs)


def sinabs(graph, inputs: Tensor) -> Tensor:
    from sinabs.nir import from_nir

    for node in graph.nodes.values():  # sinabs keeps NIR's arrays, and computes with tensors
        for name in ("tau", "v_threshold", "v_leak", "r"):
            if hasattr(node, name):
                setattr(node, name, torch.tensor(getattr(node, name)).float())
    flat = from_nir(graph, batch_size=inputs.shape[1])(inputs.transpose(0, 1).flatten(0, 1))[0]
    return flat.unflatten(0, (inputs.shape[1], STEPS)).transpose(0, 1)


def rockpool(graph, inputs: Tensor) -> Tensor:
    from rockpool.nn.modules.torch.nir import from_nir

    return from_nir(graph)(inputs.transpose(0, 1))[0].transpose(0, 1)


class Xylo(hb.Cell):
    """A neuron of Xylo in whole numbers: current and potential lose a quarter, and at least 1, per step.

    Args:
        threshold: subtracted for each spike.
        most: the most spikes in a step.
    """

    def __init__(self, threshold: Tensor, most: int) -> None:
        super().__init__()
        self.threshold, self.most = threshold, most

    def forward(self, input_: Tensor, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        i = self.decayed(i + input_)
        v = self.decayed(v - s * self.threshold) + i
        return i, v, torch.clamp(torch.floor(v / self.threshold), 0, self.most)

    @staticmethod
    def decayed(x: Tensor) -> Tensor:
        """`x` minus its quarter, rounded down; minus 1 where that is 0 and `x` is positive."""
        loss = torch.floor(x / 2**DASH)
        return x - loss - ((loss == 0) & (x > 0)).to(x)


def xylo_network() -> nn.Sequential:
    """A network 64-64-10 whose neurons decay as those of :class:`Xylo`."""
    return network(lambda: hb.CubaLIF(2.0**DASH, 2.0**DASH, 1.0, "ATan", reset="subtract"), bias=False)


def xylo(net: nn.Sequential, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The spikes of `net` in XyloSim with Rockpool's quantization, and in hibana with the same numbers.

    Xylo delivers the spikes of hidden neurons to the output neurons one step later.
    """
    from rockpool.devices.xylo.syns61201 import XyloSim
    from rockpool.transform.quantize_methods import channel_quantize

    weights = {f"weights_{key}": net[i].weight.detach().T.numpy() for key, i in (("in", 0), ("out", 2))}
    weights |= {"weights_in": weights["weights_in"][..., None], "weights_rec": np.zeros((64, 64, 1))}
    sizes = {"mem": 64, "syn": 64, "syn_2": 64, "mem_out": 10, "syn_out": 10}
    dashes = {f"dash_{name}": np.full(n, DASH) for name, n in sizes.items()}
    thresholds = {"threshold": np.ones(64), "threshold_out": np.ones(10)}
    numbers = channel_quantize(**weights, **dashes, **thresholds)
    arguments = {key: numbers[key] for key in (*weights, *dashes, *thresholds)}
    chip = XyloSim.from_specification(**arguments)
    spikes = [torch.tensor(chip.reset_state().evolve(x.numpy())[0]).float() for x in inputs.unbind(1)]
    whole = {key: torch.tensor(np.asarray(values)).float() for key, values in arguments.items()}
    hidden, out = Xylo(whole["threshold"], 31), Xylo(whole["threshold_out"], 1)
    first = inputs @ whole["weights_in"][..., 0]
    second = hb.Delay(1.0)(hb.OverTime(hidden)(first)) @ whole["weights_out"]
    return torch.stack(spikes, 1), hb.OverTime(out)(second)


def multi_spike() -> nn.Module:
    """The neuron of sinabs and DynapCNN: several spikes per step, and a lower bound of the potential."""
    return hb.LIF(math.inf, 1.0, "ATan", reset="subtract", lower_bound=-1.0, most_spikes=4)


def dynapcnn_network() -> nn.Sequential:
    """A convolutional network whose layers DynapCNN has."""
    return nn.Sequential(
        nn.Unflatten(2, (1, 8, 8)), hb.EachStep(nn.Conv2d(1, 8, 3, padding=1, bias=False)), multi_spike(),
        hb.EachStep(nn.AvgPool2d(2, divisor_override=1)), hb.EachStep(nn.Conv2d(8, 8, 3, bias=False)),
        multi_spike(), nn.Flatten(2), nn.Linear(32, 10, bias=False), multi_spike(),
    )  # fmt: skip


def dynapcnn(net: nn.Sequential, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The spikes of `net` in sinabs with DynapCNN's quantization, and in hibana with the same numbers.

    sinabs spikes where a potential reaches the threshold, hibana where it is above. So potentials, which are
    whole numbers, start at a half in hibana.
    """
    import sinabs.layers as layers
    from sinabs.backend.dynapcnn import DynapcnnNetwork

    batch = inputs.shape[1]
    neurons = [layers.IAFSqueeze(batch_size=batch, min_v_mem=-1.0, spike_threshold=1.0) for _ in range(3)]
    conv, other, linear = (copy.deepcopy(net[i]) for i in (1, 4, 7))
    chain = nn.Sequential(
        conv.module,
        neurons[0],
        layers.SumPool2d(2),
        other.module,
        neurons[1],
        nn.Flatten(),
        linear,
        neurons[2],
    )
    chip = DynapcnnNetwork(chain, input_shape=(1, 8, 8), dvs_input=False, discretize=True)
    whole = copy.deepcopy(net)
    for i, layer in zip((1, 4, 7), chip.dynapcnn_layers.values(), strict=True):
        weight = getattr(whole[i], "module", whole[i]).weight
        weight.copy_(layer.conv_layer.weight.reshape(weight.shape))
        whole[i + 1].cell.threshold = layer.spk_layer.spike_threshold.item()
        whole[i + 1].cell.lower_bound = layer.spk_layer.min_v_mem.item() + 0.5
        whole[i + 1].cell.rest = 0.5
    flat = chip(inputs.unflatten(2, (1, 8, 8)).transpose(0, 1).flatten(0, 1))
    return flat.flatten(1).unflatten(0, (batch, STEPS)).transpose(0, 1), whole(inputs)


def modules_of_snntorch(net: nn.Module, inputs: Tensor) -> Tensor:
    """The spikes of `net` converted by :func:`hibana.convert.to_snntorch`."""
    chain = hb.convert.to_snntorch(net, inputs[:2, :2])
    return torch.stack([chain(step) for step in inputs])


def main() -> None:
    """Trains the networks and prints the table."""
    warnings.simplefilter("ignore")
    sys.meta_path.insert(0, Samna())
    torch.manual_seed(0)
    spikes, classes = digits()
    test, labels = spikes[:, 1297:], classes[1297:]

    def report(name: str, outputs: Tensor, expected: Tensor) -> None:
        """Prints a row with the differing spikes, and both accuracies."""
        accuracies = [(s.sum(0).argmax(1) == labels).double().mean() for s in (expected, outputs)]
        print(
            f"| {name} | {int((outputs != expected).sum()):,} of {expected.numel():,} differ; accuracy "
            f"{accuracies[0]:.1%}, {accuracies[1]:.1%}; rate {expected.mean():.3f} |",
            flush=True,
        )

    subtract = {"reset": "subtract", "surrogate": "ATan"}
    kinds = {
        "IF": lambda: hb.IF(0.5, "ATan"),
        "LIF": lambda: hb.LIF(4.0, 0.5, "ATan"),
        "CubaLIF": lambda: hb.CubaLIF(2.0, 4.0, 0.5, "ATan"),
        "IF subtract": lambda: hb.IF(0.5, **subtract),
        "LIF subtract": lambda: hb.LIF(4.0, 0.5, **subtract, leak_first=True),
    }
    for name, neurons in kinds.items():
        net = network(neurons)
        train(net, spikes, classes)
        with torch.no_grad():
            expected = net(test)
            report(f"{name}, to_snntorch", modules_of_snntorch(net, test), expected)
            for peer in () if "subtract" in name else (snntorch, norse, spikingjelly, sinabs, rockpool):
                try:
                    report(f"{name}, {peer.__name__}", peer(hb.nir.write(net, dt=1e-4), test), expected)
                except Exception as error:  # whatever a peer raises is a result
                    print(f"| {name}, {peer.__name__} | {type(error).__name__}: {str(error)[:120]} |")
    for seed in (0, 1):
        torch.manual_seed(seed)
        for name, make, simulate in (("Xylo", xylo_network, xylo), ("DynapCNN", dynapcnn_network, dynapcnn)):
            net = make()
            train(net, spikes, classes)
            with torch.no_grad():
                accuracy = (net(test).sum(0).argmax(1) == labels).double().mean()
                report(f"{name} {seed}, accuracy {accuracy:.1%} before quantization", *simulate(net, test))


if __name__ == "__main__":
    main()
