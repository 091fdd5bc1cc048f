"""A user-defined backend as in docs/extending.md: it evaluates a step's graph in PyTorch."""

import torch
from torch.nn.functional import pad

from hibana.compiler.analysis.real_values import Eager
from hibana.compiler.backend import Backend, Kernels
from hibana.compiler.graph.leaf import INPUT, OUTPUT, Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import backward_pass, before_pass, forward_pass
from hibana.compiler.memory_layout import unpack_bits


class TorchKernels(Kernels):
    """Evaluates each operation of a step in PyTorch."""

    about = "torch: each operation of the step, at each step"

    def __init__(self, step, plan, dtype):
        self.step, self.plan, self.dtype = step, plan, dtype

    def source(self, direction):
        return f"{direction}: see {__name__}"

    def forward(self, arguments):
        inputs, first, parameters, plan, returns_last, *_ = arguments
        names, zeros = self.step.carried, torch.zeros_like(inputs[0])
        state = dict(zip(names, (zeros if t is None else t for t in first), strict=True))
        stores = forward_pass(self.step, plan)
        emitted, residuals = [], {leaf: [] for leaf in stores if leaf.kind == "residual"}
        for x in inputs:
            new = self._values(stores, state | {INPUT: x} | self._shared(parameters), x)
            emitted.append(new[OUTPUT])
            state = dict(zip(names, (*(new[leaf] for leaf in names[:-1]), new[OUTPUT]), strict=True))
            for leaf, steps in residuals.items():
                steps.append(_pack(new[leaf]) if new[leaf].dtype == torch.bool else new[leaf])
        last = [state[leaf] for leaf in names[:-1]] if returns_last else []
        return torch.stack(emitted), last, [torch.stack(steps) for steps in residuals.values()]

    def backward(self, arguments):
        plan, inputs, parameters = self.plan, arguments.inputs, arguments.parameters
        states, neurons = range(len(self.step.states)), arguments.shape[1:]
        zeros = torch.zeros(neurons, dtype=self.dtype)
        earlier = before_pass(self.step, plan)
        stores = backward_pass(self.step, plan, wants_input=arguments.wants_input)
        places = [i for i, value in enumerate(plan.residuals) if value.op != "input"]
        residuals = [self._read(t, neurons) if t.dtype == torch.uint8 else t for t in arguments.residuals]
        first_grads = [Leaf("state", i, is_gradient=True) for i in states]
        grads = dict(zip(first_grads, [*arguments.last_grads, None], strict=True))
        carried = {leaf: zeros if g is None else g for leaf, g in grads.items()}
        carried |= {leaf: zeros for leaf in stores if leaf.kind == "sum"}
        to_input = torch.zeros(arguments.shape, dtype=self.dtype)
        for t in reversed(range(arguments.shape[0])):
            leaves = self._shared(parameters) | {
                Leaf("residual", i): k[t] for i, k in zip(places, residuals, strict=True)
            }
            leaves[INPUT] = None if inputs is None else inputs[t]
            if t:
                leaves |= {Leaf("residual", i, -1): k[t - 1] for i, k in zip(places, residuals, strict=True)}
                leaves[INPUT.at(-1)] = None if inputs is None else inputs[t - 1]
                leaves |= self._values(earlier, leaves, zeros)
            else:
                initial = (zeros if f is None else f for f in arguments.first)
                leaves |= {Leaf("state", i, -1): f for i, f in zip(states, initial, strict=True)}
            leaves[OUTPUT.gradient] = zeros if arguments.grad_outputs is None else arguments.grad_outputs[t]
            new = self._values(stores, leaves | carried, zeros)
            to_input[t] = new.get(INPUT.gradient, zeros)
            carried |= {leaf: value for leaf, value in new.items() if leaf in carried}
        sums = [carried[Leaf("sum", i)] for i in range(len(self.step.grad_sums))]
        first_grads = [carried[leaf] if arguments.wants_first else None for leaf in first_grads]
        return to_input if arguments.wants_input else None, first_grads, sums

    def _read(self, bits, one):
        return unpack_bits(bits, one.numel()).view(-1, *one).bool()

    def _shared(self, parameters):
        constants = [torch.tensor(number, dtype=self.dtype) for number in self.step.constants]
        shared = {"constant": constants, "parameter": parameters}
        return {Leaf(kind, i): x for kind, tensors in shared.items() for i, x in enumerate(tensors)}

    def _values(self, stores, leaves, like):
        results = Neurons(leaves, like.shape, self.dtype).run(stores.values())
        return dict(zip(stores, results, strict=True))


class Neurons(Eager):
    """Evaluates values for all neurons from tensors of the leaves."""

    def __init__(self, leaves, shape, dtype):
        super().__init__(dtype)
        self.leaves, self.shape = leaves, shape

    def on_number(self, value):
        return torch.tensor(float(value.data), dtype=self.dtype).expand(self.shape)

    def leaf(self, value):
        return self.leaves[value.leaf].expand(self.shape)


def _pack(truths):
    """Packs truth values ``[...]`` into bytes, the lowest bit first."""
    flat = truths.flatten()
    octets = pad(flat, (0, -flat.numel() % 8)).view(-1, 8).to(torch.uint8)
    return (octets << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _kernels(products):
    if products:
        raise Unsupported("it has no products")
    return TorchKernels


BACKEND = Backend("torch", ("cpu",), _kernels)
