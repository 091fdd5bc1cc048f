"""One step a call, the state carried: a compiled stream beside `hibana.run`, the peers and a ReLU network.

And whole sequences by the compiled program, beside the network; and with gradients, steps one at a time and
a backward through all of them, as a policy in a loop with its world learns.

Batch 1, one thread, no gradients; 5% of the inputs spike. Every contender has the same layers and weights; a
peer's neuron is called step by step with its state, as its documentation has it. The stream must give what
the network gives in evaluation before it is timed.
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
RATE, STEPS, DECAY, LEARNED = 0.05, 64, 0.5, 200
"""Part of the inputs that spikes, steps of a stream, of a LIF neuron's leak, and steps with a gradient."""
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
    "dense": ("the same, an input that is dense", (25, 784), 1.0, (1, 128), _wide),
    "constant": ("the same, dense and alike at each step", (25, 784), None, (1, 128), _wide),
    "events": (
        *("events 1x28x28, 32c3-p2-64c3-p2-10, T=8", (8, 1, 28, 28), RATE, (1, 16)),
        partial(_images, 1, 64 * 49),
    ),
    "images": (
        *("images 3x32x32, the same layers, T=4", (4, 3, 32, 32), 1.0, (1, 16)),
        partial(_images, 3, 64 * 64),
    ),
}
"""Of each its title, T and a step's shape, the part of the inputs that are not zero or None of an input that
stays the same, batches, and layers.
"""


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """A job for each network, of steps and of sequences."""
    steps = {f"streaming/{name}": partial(_times, name, quick) for name in NETWORKS}
    steps |= {f"streaming/gradients-{name}": partial(_gradients, name, quick) for name in NETWORKS}
    return steps | {f"streaming/sequence-{name}": partial(_sequences, name, quick) for name in SEQUENCES}


def section(rows: list[Row]) -> Iterable[str]:
    """A line for each network: microseconds a step, and ratios."""
    yield (
        "A step of a stream a call, batch 1, no gradients, in µs. `hb.compile` is `stream.step`; ReLU is the "
        "same layers without states.\n"
    )
    steps = [row for row in rows if "network" in row]
    yield from _beside_peers(
        steps, "network", "hb.compile", {"hibana": "**hb.compile**", "hibana-run": "hb.run"}, 1e3
    )
    yield (
        f"{LEARNED} steps of a stream, a call each, and a backward through all of them, batch 1, in ms. ReLU "
        "is the same layers without states.\n"
    )
    learned = [row for row in rows if "learned" in row]
    yield from _beside_peers(learned, "learned", "hb.run", {"hibana-run": "**hb.run**"}, 1.0)
    yield "Whole sequences: the time of `program(inputs)` as a ratio to that of `net(inputs)`.\n"
    groups = grouped([row for row in rows if "sequence" in row], "sequence", "size")
    ratios = {key: group["program"]["ms"] / group["net"]["ms"] for key, group in groups.items()}
    lines = [
        [SEQUENCES[name][0], *(number(ratios.get((name, size))) for size in ("one", "many"))]
        for name in dict.fromkeys(str(name) for name, _ in ratios)
    ]
    yield from table(["network", "batch 1", "batch 128 (convolutions 16)"], lines)


def _beside_peers(rows: list[Row], key: str, title: str, ours: dict[str, str], unit: float) -> Iterable[str]:
    """A line for each network: ReLU, the first of `ours` in bold, all others, and ratios.

    Args:
        rows: with a time for each contender.
        key: of a row's network.
        title: of the first of `ours`, in the heads of the ratios.
        ours: the contenders of hibana, and their heads.
        unit: what milliseconds are multiplied by.
    """
    names, (first, *_) = ["relu", *ours, *PEERS], ours
    heads = ["ReLU", *ours.values(), *(peers.PEERS[name].title for name in PEERS)]
    lines = []
    for (network,), group in grouped(rows, key).items():
        taken = {name: row["ms"] * unit for name, row in group.items()}
        fastest = min((taken[name] for name in PEERS if name in taken), default=None)
        shown = [bold(taken.get(n)) if n == first else number(taken.get(n)) for n in names]
        ratios = [taken[first] / taken["relu"], fastest / taken[first] if fastest else None]
        lines.append([NETWORKS[str(network)][0], *shown, *map(number, ratios)])
    yield from table(["network", *heads, f"{title} / ReLU", f"fastest peer / {title}"], lines)


def _times(name: str, quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    _, shape, layers = NETWORKS[name]
    torch.manual_seed(0)
    inputs = (torch.rand(STEPS, 1, *shape) < RATE).float()
    made = _scaled(layers())
    with torch.no_grad():
        net = _ours(made)
        program = hb.compile(net, inputs)
        wanted, stream = net(inputs), program.stream()
        if not 0 < wanted.mean() < 0.5 or not torch.equal(
            torch.stack([stream.step(x) for x in inputs]), wanted
        ):
            raise RuntimeError(f"{name}: the stream does not give what the network gives")
        contenders: dict[str, Callable[[], object]] = {
            "relu": _over(_relu(made), inputs),
            "hibana": _over(stream.step, inputs),
            "hibana-run": _over(_run(net), inputs),
        }
        available, _ = peers.available()
        contenders |= {peer: _over(_STEPS[peer](made), inputs) for peer in PEERS if peer in available}
        seconds = measure.rounds(contenders, budget_s=1.0 if quick else 20.0, at_least=5, stretch_s=0.02)
    firing = float(wanted.mean())
    return [
        {"network": name, "contender": who, "firing": firing, **_a_step(measure.summary(taken))}
        for who, taken in seconds.items()
    ]


def _scaled(layers: list[Layer]) -> list[Layer]:
    """`layers` with weights by which they spike, and whose sums are exact."""
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.mul_(6 if isinstance(layer, nn.Linear) else 3)
                for parameter in layer.parameters():
                    parameter.copy_((parameter * 256).round() / 256)
    return layers


def _gradients(name: str, quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    _, shape, layers = NETWORKS[name]
    torch.manual_seed(0)
    inputs = (torch.rand(LEARNED, 1, *shape) < RATE).float()
    made = _scaled(layers())
    parameters = [p for layer in made if isinstance(layer, nn.Module) for p in layer.parameters()]
    net = _ours(made, surrogate="ATan", detach_reset=True)

    def learns(step_of: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[], object]:
        def call() -> None:
            step, total = step_of(), torch.zeros(())
            for x in inputs:
                total = total + step(x).square().sum()
            for parameter in parameters:
                parameter.grad = None
            total.backward()

        return call

    contenders = {"relu": learns(lambda: _relu(made)), "hibana-run": learns(lambda: _run(net))}
    for _ in range(2):  # the second goes by what the first prepared
        contenders["hibana-run"]()
    found = [parameter.grad for parameter in parameters]
    wanted = torch.autograd.grad(net(inputs).square().sum(), parameters)
    for one, other in zip(found, wanted, strict=True):
        if one is None or (one - other).abs().max() > 1e-3 * other.abs().max():
            raise RuntimeError(f"{name}: steps do not have the gradient of the sequence")
    available, _ = peers.available()
    for peer in PEERS:
        if peer in available:
            contenders[peer] = learns(partial(_STEPS[peer], made))
    seconds = measure.rounds(contenders, budget_s=1.0 if quick else 30.0, at_least=5)
    return [{"learned": name, "contender": who, **measure.summary(taken)} for who, taken in seconds.items()]


def _sequences(name: str, quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    _, (steps, *shape), rate, batches, layers = SEQUENCES[name]
    torch.manual_seed(0)
    net, rows = _ours(layers()), list[Row]()
    for size, batch in zip(("one", "many"), batches, strict=True):
        if rate is None:
            inputs = torch.rand(batch, *shape).expand(steps, batch, *shape)
        else:
            spikes = torch.rand(steps, batch, *shape) < rate
            inputs = spikes.float() if rate < 1 else torch.rand(steps, batch, *shape)
        program = hb.compile(net, inputs)
        with torch.no_grad():
            if not torch.allclose(program(inputs), net(inputs), atol=0.5):  # a spike may come a step later
                raise RuntimeError(f"{name}: the program does not give what the network gives")
            contenders = {"net": partial(net, inputs), "program": partial(program, inputs)}
            seconds = measure.rounds(contenders, budget_s=1.0 if quick else 20.0, at_least=5)
        rows += [
            {"sequence": name, "size": size, "contender": who, **measure.summary(taken)}
            for who, taken in seconds.items()
        ]
    return rows


def _a_step(summary: dict[str, float]) -> dict[str, float]:
    return {key: value / STEPS if key.startswith("ms") else value for key, value in summary.items()}


def _over(step: Callable[[Tensor], object], inputs: Tensor) -> Callable[[], object]:
    """All steps of `inputs`, one call each."""
    steps = list(inputs.unbind())
    return lambda: [step(x) for x in steps]


def _ours(layers: list[Layer], **options: Any) -> nn.Sequential:
    """Neurons of hibana, and layers that know no time at each step."""
    made: list[nn.Module] = []
    for layer in layers:
        if layer == "neuron":
            made.append(hb.LIF(tau=1 / DECAY, **options))
        elif isinstance(layer, nn.Flatten):
            made.append(nn.Flatten(2))
        else:
            assert isinstance(layer, nn.Module)
            made.append(layer if isinstance(layer, nn.Linear) else hb.EachStep(layer))
    return nn.Sequential(*made).eval()


def _relu(layers: list[Layer]) -> nn.Module:
    return nn.Sequential(*(nn.ReLU() if isinstance(layer, str) else layer for layer in layers)).eval()


def _run(net: nn.Module) -> Callable[[Tensor], Tensor]:
    state: Any = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        outputs: Tensor
        outputs, state = hb.run(net, x[None], state)
        return outputs

    return step


def _stateful(layers: list[Layer], neuron: Callable[[], Callable[[Tensor, Any], Any]]) -> Callable[..., Any]:
    """A step of `layers` in which each neuron has a state of its own, passed on."""
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
    import snntorch

    def neuron() -> Callable[[Tensor, Any], Any]:
        made = snntorch.Leaky(beta=DECAY, reset_mechanism="zero")
        return lambda x, membrane: made(x, torch.zeros_like(x) if membrane is None else membrane)

    return _stateful(layers, neuron)


def _spikingjelly(layers: list[Layer]) -> Callable[..., Any]:
    from spikingjelly.activation_based import neuron

    made = [
        neuron.LIFNode(tau=1 / DECAY, decay_input=False, step_mode="s") if isinstance(layer, str) else layer
        for layer in layers
    ]
    return nn.Sequential(*made).eval()


def _norse(layers: list[Layer]) -> Callable[..., Any]:
    import norse.torch as norse

    half = torch.tensor(DECAY)

    def neuron() -> Callable[[Tensor, Any], Any]:
        cell: Any = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=half, v_th=half), dt=1.0)
        return cell

    return _stateful(layers, neuron)


def _sinabs(layers: list[Layer]) -> Callable[..., Any]:
    case = peers.Case("LIF", "ATan", leaky=True)

    def neuron() -> Callable[[Tensor, Any], Any]:
        layer: Any = peers.PEERS["sinabs"].layer(case).module.layer
        return lambda x, _: (layer(x[:, None])[:, 0], None)  # which keeps its state itself

    return _stateful(layers, neuron)


_STEPS = {"snntorch": _snntorch, "spikingjelly": _spikingjelly, "norse": _norse, "sinabs": _sinabs}

if __name__ == "__main__":
    print("\n".join(section([row for job in jobs(False).values() for row in job()])))
