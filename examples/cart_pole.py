"""A spiking policy balances a pole on a cart: trained through the physics, then run by a stream.

    python examples/cart_pole.py

The cart is pushed 50 times a second. In training, gradients go back through the physics and the network over
a second; afterwards the compiled network takes one step for each push. With ``--pace 1`` it waits for the
clock, as it would on a machine.

Source of the physics: Barto, Sutton & Anderson (1983), *Neuronlike adaptive elements that can solve
difficult learning control problems*.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

import hibana as hb

GRAVITY, CART, POLE, HALF, STEP, STRONGEST = 9.8, 1.0, 0.1, 0.5, 0.02, 10.0
"""m/s², kg, kg, m from the joint to the pole's centre, s, N."""
EDGE, FALLEN = 2.4, 0.21
"""Where the track ends, in m, and the angle from which on the pole counts as fallen, in rad."""
CHUNK, CHUNKS, BATCH = 50, 2, 64
"""Steps that gradients go back over, how many times as many make an episode, and carts at a time."""
WIDE, NARROW = (1.0, 0.5, 0.1, 0.5), (0.05, 0.05, 0.05, 0.05)
"""Of each part of the state, how far from 0 it may be in the beginning: in training, and afterwards."""
WEIGHTS = (0.5, 0.1, 1.0, 0.1)
"""What the square of each part of the state costs, as the network sees it."""


def moved(state: Tensor, force: Tensor) -> Tensor:
    """Position, speed, angle and its speed, ``[batch, 4]``, a step after `force`, ``[batch]``."""
    x, v, angle, spin = state.unbind(1)
    mass, sine, cosine = CART + POLE, angle.sin(), angle.cos()
    push = (force + POLE * HALF * spin.square() * sine) / mass
    turned = (GRAVITY * sine - cosine * push) / (HALF * (4 / 3 - POLE * cosine.square() / mass))
    pushed = push - POLE * HALF * turned * cosine / mass
    return torch.stack([x + STEP * v, v + STEP * pushed, angle + STEP * spin, spin + STEP * turned], 1)


def start(count: int, most: tuple[float, ...]) -> Tensor:
    """States ``[count, 4]``, each part at most so far from 0."""
    return (2 * torch.rand(count, 4) - 1) * torch.tensor(most)


def lost(state: Tensor) -> Tensor:
    """Of which carts, ``[batch]``, the pole has fallen or the track has ended."""
    return (state[:, 0].abs() > EDGE) | (state[:, 2].abs() > FALLEN)


def seen(state: Tensor) -> Tensor:
    """What the network is shown: the state, each part at a scale of its own."""
    return state / torch.tensor([EDGE, 2.0, FALLEN, 2.0])


def force_of(output: Tensor) -> Tensor:
    """The force, ``[batch]``, that the network's output ``[batch, 1]`` asks for."""
    return STRONGEST * output[:, 0].tanh()


def policy(neurons: int = 64) -> nn.Sequential:
    """From the state to a force, by spikes."""
    neuron = hb.LIF(tau=2.0, threshold=0.5, surrogate="ATan")
    return nn.Sequential(nn.Linear(4, neurons), neuron, nn.Linear(neurons, 1), hb.LI(tau=2.0))


def train(net: nn.Module, episodes: int) -> float:
    """Trains `net`; returns the part of the carts that were lost in the last episode."""
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    gone = 0
    for _ in range(episodes):
        state, carried, gone = start(BATCH, WIDE), None, 0
        for _ in range(CHUNKS):
            cost = torch.zeros(())
            for _ in range(CHUNK):
                outputs, carried = hb.run(net, seen(state)[None], carried)
                state = moved(state, force_of(outputs[0]))
                cost = cost + seen(state).square().mean(0) @ torch.tensor(WEIGHTS)
            optimizer.zero_grad()
            cost.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            carried = {name: tuple(part.detach() for part in parts) for name, parts in carried.items()}
            down = lost(state)
            state, gone = (
                torch.where(down[:, None], start(BATCH, WIDE), state.detach()),
                gone + int(down.sum()),
            )
    return gone / BATCH / CHUNKS


def balance(stream: Any, steps: int, pace: float = 0.0) -> tuple[int, float]:
    """Balances one pole from a new start; how many steps it stood, and the seconds that the network took."""
    state, taken = start(1, NARROW), 0.0
    stream.reset()
    for step in range(steps):
        shown, begun = seen(state), time.perf_counter()
        outputs = stream.step(shown)
        taken += time.perf_counter() - begun
        state = moved(state, force_of(outputs))
        if bool(lost(state)):
            return step + 1, taken
        if pace:
            time.sleep(max(0.0, STEP / pace - (time.perf_counter() - begun)))
    return steps, taken


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--episodes", type=int, default=40)
    options.add_argument("--trials", type=int, default=20)
    options.add_argument("--steps", type=int, default=1000, help="of a trial; 50 are a second")
    options.add_argument("--pace", type=float, default=0.0, help="1 for real time, 0 as fast as it goes")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    torch.manual_seed(asked.seed)
    net, begun = policy(), time.perf_counter()
    train(net, asked.episodes)
    print(f"trained in {time.perf_counter() - begun:.0f} s")
    stream = hb.compile(net, torch.zeros(1, 1, 4)).stream()
    with torch.no_grad():
        stood = [balance(stream, asked.steps, asked.pace) for _ in range(asked.trials)]
    whole = sum(steps == asked.steps for steps, _ in stood)
    each = sum(seconds for _, seconds in stood) / sum(steps for steps, _ in stood)
    print(f"{whole} of {asked.trials} poles stood for {asked.steps * STEP:.0f} s")
    print(f"a step takes {each * 1e6:.0f} µs")


if __name__ == "__main__":
    main()
