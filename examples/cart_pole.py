"""Trains a spiking policy to balance a pole on a cart, with gradients through the physics.

    python examples/cart_pole.py

The policy pushes the cart 50 times per second. In training, gradients flow through the physics and the
network for one second. Afterwards the compiled network takes one step per push. With ``--pace 1`` it runs in
real time.

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
"""Gravity in m/s², masses in kg, distance from the joint to the pole's centre in m, step in s, force in N."""
EDGE, FALLEN = 2.4, 0.21
"""Half the length of the track in m, and the largest angle in rad at which the pole still stands."""
CHUNK, CHUNKS, BATCH = 50, 2, 64
"""Steps between two updates of the weights, updates per episode, and number of carts in a batch."""
WIDE, NARROW = (1.0, 0.5, 0.1, 0.5), (0.05, 0.05, 0.05, 0.05)
"""Largest initial value of each state variable, in training and afterwards."""
WEIGHTS = (0.5, 0.1, 1.0, 0.1)
"""Weight of the square of each scaled state variable in the loss."""


def next_state(state: Tensor, force: Tensor) -> Tensor:
    """Returns the next state after a push with `force`, ``[batch]``.

    A state ``[batch, 4]`` holds position, velocity, angle and angular velocity.
    """
    x, v, angle, spin = state.unbind(1)
    mass, sine, cosine = CART + POLE, angle.sin(), angle.cos()
    push = (force + POLE * HALF * spin.square() * sine) / mass
    angular = (GRAVITY * sine - cosine * push) / (HALF * (4 / 3 - POLE * cosine.square() / mass))
    linear = push - POLE * HALF * angular * cosine / mass
    return torch.stack([x + STEP * v, v + STEP * linear, angle + STEP * spin, spin + STEP * angular], 1)


def initial_state(count: int, largest: tuple[float, ...]) -> Tensor:
    """Returns random states ``[count, 4]`` between minus and plus `largest`."""
    return (2 * torch.rand(count, 4) - 1) * torch.tensor(largest)


def is_lost(state: Tensor) -> Tensor:
    """Whether the pole of each cart has fallen or the cart has left the track, ``[batch]``."""
    return (state[:, 0].abs() > EDGE) | (state[:, 2].abs() > FALLEN)


def scaled(state: Tensor) -> Tensor:
    """Returns the network's input: the state, each variable divided by its typical range."""
    return state / torch.tensor([EDGE, 2.0, FALLEN, 2.0])


def to_force(output: Tensor) -> Tensor:
    """Converts the network's output ``[batch, 1]`` to a force ``[batch]``."""
    return STRONGEST * output[:, 0].tanh()


def policy(neurons: int = 64) -> nn.Sequential:
    """Returns a spiking network from the scaled state to a force."""
    neuron = hb.LIF(tau=2.0, threshold=0.5, surrogate="ATan")
    return nn.Sequential(nn.Linear(4, neurons), neuron, nn.Linear(neurons, 1), hb.LI(tau=2.0))


def train(net: nn.Module, episodes: int) -> float:
    """Trains `net`; returns the fraction of carts that were lost in the last episode."""
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    lost = 0
    for _ in range(episodes):
        state, network_state, lost = initial_state(BATCH, WIDE), None, 0
        for _ in range(CHUNKS):
            cost = torch.zeros(())
            for _ in range(CHUNK):
                outputs, network_state = hb.run(net, scaled(state)[None], network_state)
                state = next_state(state, to_force(outputs[0]))
                cost = cost + scaled(state).square().mean(0) @ torch.tensor(WEIGHTS)
            optimizer.zero_grad()
            cost.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            network_state = {
                name: tuple(tensor.detach() for tensor in tensors) for name, tensors in network_state.items()
            }
            is_down = is_lost(state)
            state = torch.where(is_down[:, None], initial_state(BATCH, WIDE), state.detach())
            lost += int(is_down.sum())
    return lost / BATCH / CHUNKS


def balance(stream: Any, steps: int, pace: float = 0.0) -> tuple[int, float]:
    """Balances one pole from a random state.

    Args:
        stream: the compiled policy.
        steps: largest number of steps.
        pace: 1 runs in real time, 2 twice as fast; 0 does not wait.

    Returns:
        The number of steps until the pole fell, and the seconds that the network took.
    """
    state, seconds = initial_state(1, NARROW), 0.0
    stream.reset()
    for step in range(steps):
        inputs, begin = scaled(state), time.perf_counter()
        outputs = stream.step(inputs)
        seconds += time.perf_counter() - begin
        state = next_state(state, to_force(outputs))
        if bool(is_lost(state)):
            return step + 1, seconds
        if pace:
            time.sleep(max(0.0, STEP / pace - (time.perf_counter() - begin)))
    return steps, seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--episodes", type=int, default=40)
    options.add_argument("--trials", type=int, default=20)
    options.add_argument("--steps", type=int, default=1000, help="of a trial; 50 per second")
    options.add_argument("--pace", type=float, default=0.0, help="1 for real time, 0 for no waiting")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    torch.manual_seed(arguments.seed)
    net, begin = policy(), time.perf_counter()
    train(net, arguments.episodes)
    print(f"trained in {time.perf_counter() - begin:.0f} s")
    stream = hb.compile(net, torch.zeros(1, 1, 4)).stream()
    with torch.no_grad():
        trials = [balance(stream, arguments.steps, arguments.pace) for _ in range(arguments.trials)]
    successes = sum(steps == arguments.steps for steps, _ in trials)
    step_time = sum(seconds for _, seconds in trials) / sum(steps for steps, _ in trials)
    print(f"{successes} of {arguments.trials} poles stood for {arguments.steps * STEP:.0f} s")
    print(f"a step takes {step_time * 1e6:.0f} µs")


if __name__ == "__main__":
    main()
