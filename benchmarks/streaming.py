"""Times networks that compute one time step per call and carry their state between calls.

Three groups of jobs: a stream of a compiled program, ``hb.run``, peers and a ReLU network without gradients;
single steps followed by a backward through all of them, as in reinforcement learning; and whole sequences
with the compiled program and with the network.

Streams have batch 1, one thread, and 5% of the inputs spike. All contenders have the same layers and weights.
A peer's neuron is called step by step with its state, as its documentation shows. The outputs of the stream
must equal those of the network before it is timed.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

import hibana as hb
from benchmarks import measure, peers
from benchmarks.tables import bold, grouped, number, table

__all__ = ["NETWORKS", "SEQUENCES", "jobs", "section"]

Row = dict[str, Any]
Layer = nn.Module | Literal["neuron"]
RATE, STEPS, DECAY, GRADIENT_STEPS = 0.05, 64, 0.5, 200
"""Fraction of inputs that spike; steps of a stream; decay of a neuron per step; steps with gradients."""
PEERS = ("snntorch", "spikingjelly", "norse", "sinabs")


def _mlp() -> list[Layer]:
    return [nn.Linear(128, 256), "neuron", nn.Linear(256, 256), "neuron", nn.Linear(256, 10), "neuron"]


def _conv() -> list[Layer]:
    first: list[Layer] = [nn.Conv2d(2, 16, 3, padding=1), "neuron", nn.MaxPool2d(2)]
    second: list[Layer] = [nn.Conv2d(16, 32, 3, padding=1), "neuron", nn.MaxPool2d(2)]
    return [*first, *second, nn.Flatten(), nn.Linear(32 * 8 * 8, 10), "neuron"]


NETWORKS: dict[str, tuple[str, tuple[int, ...], Callable[[], list[Layer]]]] = {
    "mlp": ("128-256-256-10", (128,), _mlp),
    "conv": ("events 2x32x32, 16c3-p2-32c3-p2-10", (2, 32, 32), _conv),
}


def _wide() -> list[Layer]:
    return [nn.Linear(784, 512), "neuron", nn.Linear(512, 512), "neuron", nn.Linear(512, 10), "neuron"]


def _images(channels: int, features: int) -> list[Layer]:
    first: list[Layer] = [nn.Conv2d(channels, 32, 3, padding=1), "neuron", nn.MaxPool2d(2)]
    second: list[Layer] = [nn.Conv2d(32, 64, 3, padding=1), "neuron", nn.MaxPool2d(2)]
    return [*first, *second, nn.Flatten(), nn.Linear(features, 10), "neuron"]


_Sequence = tuple[str, tuple[int, ...], float | None, tuple[int, int], Callable[[], list[Layer]]]
SEQUENCES: dict[str, _Sequence] = {
    "spikes": ("784-512-512-10, T=25, 5% of the inputs", (25, 784), RATE, (1, 128), _wide),
    "dense": ("the same, dense inputs", (25, 784), 1.0, (1, 128), _wide),
    "constant": ("the same, dense inputs, constant over time", (25, 784), None, (1, 128), _wide),
    "events": (
        *("events 1x28x28, 32c3-p2-64c3-p2-10, T=8", (8, 1, 28, 28), RATE, (1, 16)),
        partial(_images, 1, 64 * 49),
    ),
    "images": (
        *("images 3x32x32, the same layers, T=4", (4, 3, 32, 32), 1.0, (1, 16)),
        partial(_images, 3, 64 * 64),
    ),
}
"""Title, shape (T and a sample's shape), fraction of nonzero inputs, two batch sizes, and layers.

The fraction is None for an input that is the same at each step.
"""


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per network for a stream and for gradients, and one per entry of :data:`SEQUENCES`."""
    steps = {f"streaming/{name}": partial(_measure_stream, name, quick) for name in NETWORKS}
    steps |= {f"streaming/gradients-{name}": partial(_measure_gradients, name, quick) for name in NETWORKS}
    return steps | {
        f"streaming/sequence-{name}": partial(_measure_sequences, name, quick) for name in SEQUENCES
    }


def section(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: tables of the three groups of jobs."""
    yield (
        "Time per step of a stream, one step per call, batch 1, no gradients, in µs. `hb.compile` is "
        "`stream.step`; ReLU is the same network with ReLU.\n"
    )
    steps = [row for row in rows if "network" in row]
    yield from _table_with_peers(
        steps, "network", "hb.compile", {"hibana": "**hb.compile**", "hibana-run": "hb.run"}, 1e3
    )
    yield (
        f"{GRADIENT_STEPS} steps of a stream, one step per call, and a backward through all steps, batch 1, "
        "in ms.\n"
    )
    gradient_rows = [row for row in rows if "learned" in row]
    yield from _table_with_peers(gradient_rows, "learned", "hb.run", {"hibana-run": "**hb.run**"}, 1.0)
    yield "Whole sequences: the time of `program(inputs)` as a ratio to that of `net(inputs)`.\n"
    groups = grouped([row for row in rows if "sequence" in row], "sequence", "size")
    ratios = {key: group["program"]["ms"] / group["net"]["ms"] for key, group in groups.items()}
    lines = [
        [SEQUENCES[name][0], *(number(ratios.get((name, size))) for size in ("one", "many"))]
        for name in dict.fromkeys(str(name) for name, _ in ratios)
    ]
    yield from table(["network", "batch 1", "batch 128 (convolutions 16)"], lines)


def _table_with_peers(
    rows: list[Row], key: str, title: str, ours: dict[str, str], unit: float
) -> Iterable[str]:
    """Lines of a table with a row per network: times of ReLU, hibana and the peers, and two ratios.

    Args:
        rows: measurements, one per network and contender.
        key: the key of the network's name in a row.
        title: name of hibana's first contender in the column titles of the ratios.
        ours: column titles by contender of hibana; the first column is bold.
        unit: factor that converts milliseconds to the unit of the table.
    """
    names, (first, *_) = ["relu", *ours, *PEERS], ours
    heads = ["ReLU", *ours.values(), *(peers.PEERS[name].title for name in PEERS)]
    lines = []
    for (network,), group in grouped(rows, key).items():
        times = {name: row["ms"] * unit for name, row in group.items()}
        fastest = min((times[name] for name in PEERS if name in times), default=None)
        cells = [bold(times.get(n)) if n == first else number(times.get(n)) for n in names]
        ratios = [times[first] / times["relu"], fastest / times[first] if fastest else None]
        lines.append([NETWORKS[str(network)][0], *cells, *map(number, ratios)])
    yield from table(["network", *heads, f"{title} / ReLU", f"fastest peer / {title}"], lines)


def _measure_stream(name: str, quick: bool) -> list[Row]:
    """Rows of one job: times of a step of a stream by each contender."""
    torch.set_num_threads(1)
    _, shape, make_layers = NETWORKS[name]
    torch.manual_seed(0)
    inputs = (torch.rand(STEPS, 1, *shape) < RATE).float()
    layers = _scale_weights(make_layers())
    with torch.no_grad():
        net = _hibana_network(layers)
        program = hb.compile(net, inputs)
        expected, stream = net(inputs), program.stream()
        if not 0 < expected.mean() < 0.5 or not torch.equal(
            torch.stack([stream.step(x) for x in inputs]), expected
        ):
            raise RuntimeError(f"{name}: the outputs of the stream differ from those of the network")
        contenders: dict[str, Callable[[], object]] = {
            "relu": _call_each_step(_relu_network(layers), inputs),
            "hibana": _call_each_step(stream.step, inputs),
            "hibana-run": _call_each_step(_step_by_run(net), inputs),
        }
        available, _ = peers.available()
        contenders |= {
            peer: _call_each_step(_MAKE_STEP[peer](layers), inputs) for peer in PEERS if peer in available
        }
        seconds = measure.rounds(contenders, budget_s=1.0 if quick else 20.0, min_rounds=5, stretch_s=0.02)
    firing = float(expected.mean())
    return [
        {"network": name, "contender": contender, "firing": firing, **_per_step(measure.summary(times))}
        for contender, times in seconds.items()
    ]


def _scale_weights(layers: list[Layer]) -> list[Layer]:
    """Scales the weights so that the neurons spike, and rounds them to a grid on which sums are exact."""
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.mul_(6 if isinstance(layer, nn.Linear) else 3)
                for parameter in layer.parameters():
                    parameter.copy_((parameter * 256).round() / 256)
    return layers


def _measure_gradients(name: str, quick: bool) -> list[Row]:
    """Rows of one job: times of single steps and a backward through all of them."""
    torch.set_num_threads(1)
    _, shape, make_layers = NETWORKS[name]
    torch.manual_seed(0)
    inputs = (torch.rand(GRADIENT_STEPS, 1, *shape) < RATE).float()
    layers = _scale_weights(make_layers())
    parameters = [p for layer in layers if isinstance(layer, nn.Module) for p in layer.parameters()]
    net = _hibana_network(layers, surrogate="ATan", detach_reset=True)

    def training_call(make_step: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[], object]:
        """Returns a function that runs all steps with a new state, and the backward."""

        def call() -> None:
            step, total = make_step(), torch.zeros(())
            for x in inputs:
                total = total + step(x).square().sum()
            for parameter in parameters:
                parameter.grad = None
            total.backward()

        return call

    contenders = {
        "relu": training_call(lambda: _relu_network(layers)),
        "hibana-run": training_call(lambda: _step_by_run(net)),
    }
    for _ in range(2):  # hb.run reuses what it prepared in the first call
        contenders["hibana-run"]()
    gradients = [parameter.grad for parameter in parameters]
    expected = torch.autograd.grad(net(inputs).square().sum(), parameters)
    for actual, expected_gradient in zip(gradients, expected, strict=True):
        if actual is None or (actual - expected_gradient).abs().max() > 1e-3 * expected_gradient.abs().max():
            raise RuntimeError(f"{name}: the gradients of single steps differ from those of the sequence")
    available, _ = peers.available()
    for peer in PEERS:
        if peer in available:
            contenders[peer] = training_call(partial(_MAKE_STEP[peer], layers))
    seconds = measure.rounds(contenders, budget_s=1.0 if quick else 30.0, min_rounds=5)
    return [
        {"learned": name, "contender": contender, **measure.summary(times)}
        for contender, times in seconds.items()
    ]


def _measure_sequences(name: str, quick: bool) -> list[Row]:
    """Rows of one job: times of sequences by the network and by its compiled program."""
    torch.set_num_threads(1)
    _, (steps, *shape), rate, batches, make_layers = SEQUENCES[name]
    torch.manual_seed(0)
    net, rows = _hibana_network(make_layers()), list[Row]()
    for size, batch in zip(("one", "many"), batches, strict=True):
        if rate is None:
            inputs = torch.rand(batch, *shape).expand(steps, batch, *shape)
        else:
            spikes = torch.rand(steps, batch, *shape) < rate
            inputs = spikes.float() if rate < 1 else torch.rand(steps, batch, *shape)
        program = hb.compile(net, inputs)
        with torch.no_grad():
            if not torch.allclose(
                program(inputs), net(inputs), atol=0.5
            ):  # rounding may delay a spike by a step
                raise RuntimeError(f"{name}: the outputs of the program differ from those of the network")
            contenders = {"net": partial(net, inputs), "program": partial(program, inputs)}
            seconds = measure.rounds(contenders, budget_s=1.0 if quick else 20.0, min_rounds=5)
        rows += [
            {"sequence": name, "size": size, "contender": contender, **measure.summary(times)}
            for contender, times in seconds.items()
        ]
    return rows


def _per_step(summary: dict[str, float]) -> dict[str, float]:
    """Divides the milliseconds of a `summary` by the number of steps."""
    return {key: value / STEPS if key.startswith("ms") else value for key, value in summary.items()}


def _call_each_step(step: Callable[[Tensor], object], inputs: Tensor) -> Callable[[], object]:
    """Returns a function that calls `step` once for each step of `inputs`."""
    steps = list(inputs.unbind())
    return lambda: [step(x) for x in steps]


def _hibana_network(layers: list[Layer], **options: Any) -> nn.Sequential:
    """A network over time of `layers`, with hibana's LIF neurons for ``"neuron"``."""
    modules: list[nn.Module] = []
    for layer in layers:
        if layer == "neuron":
            modules.append(hb.LIF(tau=1 / DECAY, **options))
        elif isinstance(layer, nn.Flatten):
            modules.append(nn.Flatten(2))
        else:
            assert isinstance(layer, nn.Module)
            modules.append(layer if isinstance(layer, nn.Linear) else hb.EachStep(layer))
    return nn.Sequential(*modules).eval()


def _relu_network(layers: list[Layer]) -> nn.Module:
    return nn.Sequential(*(nn.ReLU() if isinstance(layer, str) else layer for layer in layers)).eval()


def _step_by_run(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function that computes the next step of `net` with ``hb.run``."""
    state: Any = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        outputs: Tensor
        outputs, state = hb.run(net, x[None], state)
        return outputs

    return step


def _stateful(layers: list[Layer], neuron: Callable[[], Callable[[Tensor, Any], Any]]) -> Callable[..., Any]:
    """A function that computes the next step of `layers` and carries the state of each neuron."""
    calls: list[tuple[Any, bool]] = [
        (neuron(), True) if isinstance(layer, str) else (layer, False) for layer in layers
    ]
    states: list[Any] = [None] * len(calls)

    def step(x: Tensor) -> Tensor:
        for i, (call, has_state) in enumerate(calls):
            if has_state:
                x, states[i] = call(x, states[i])
            else:
                x = call(x)
        return x

    return step


def _snntorch(layers: list[Layer]) -> Callable[..., Any]:
    """A function that computes the next step with snnTorch's neurons."""
    import snntorch

    def neuron() -> Callable[[Tensor, Any], Any]:
        leaky = snntorch.Leaky(beta=DECAY, reset_mechanism="zero")
        return lambda x, membrane: leaky(x, torch.zeros_like(x) if membrane is None else membrane)

    return _stateful(layers, neuron)


def _spikingjelly(layers: list[Layer]) -> Callable[..., Any]:
    """A function that computes the next step with SpikingJelly's neurons."""
    from spikingjelly.activation_based import neuron

    modules = [
        neuron.LIFNode(tau=1 / DECAY, decay_input=False, step_mode="s") if isinstance(layer, str) else layer
        for layer in layers
    ]
    return nn.Sequential(*modules).eval()


def _norse(layers: list[Layer]) -> Callable[..., Any]:
    """A function that computes the next step with Norse's neurons."""
    import norse.torch as norse

    half = torch.tensor(DECAY)

    def neuron() -> Callable[[Tensor, Any], Any]:
        cell: Any = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=half, v_th=half), dt=1.0)
        return cell

    return _stateful(layers, neuron)


def _sinabs(layers: list[Layer]) -> Callable[..., Any]:
    """A function that computes the next step with sinabs' neurons."""
    case = peers.Case("LIF", "ATan", leaky=True)

    def neuron() -> Callable[[Tensor, Any], Any]:
        layer: Any = peers.PEERS["sinabs"].layer(case).module.layer
        return lambda x, _: (layer(x[:, None])[:, 0], None)  # the layer carries its state itself

    return _stateful(layers, neuron)


_MAKE_STEP = {"snntorch": _snntorch, "spikingjelly": _spikingjelly, "norse": _norse, "sinabs": _sinabs}

if __name__ == "__main__":
    print("\n".join(section([row for job in jobs(False).values() for row in job()])))
