"""A user-defined backend as in docs/extending.md: it evaluates a step's graph in PyTorch."""

import torch
from torch.nn.functional import pad

from hibana.compiler.analysis.real_values import Eager
from hibana.compiler.backend import Backend, Kernels
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
        names, zeros = self.step.states, torch.zeros_like(inputs[0])
        state = dict(zip(names, (zeros if t is None else t for t in first), strict=True))
        stores = forward_pass(self.step, plan)
        emitted, residuals = [], {name: [] for name in stores if name not in names}
        for x in inputs:
            leaves = state | {"x": x, "emitted_before": state[names[-1]]} | self._shared(parameters)
            new = self._values(stores, leaves, x)
            state = {name: new[name] for name in names}
            emitted.append(state[names[-1]])
            for name, steps in residuals.items():
                steps.append(_pack(new[name]) if new[name].dtype == torch.bool else new[name])
        last = [state[name] for name in names[:-1]] if returns_last else []
        return torch.stack(emitted), last, [torch.stack(steps) for steps in residuals.values()]

    def backward(self, arguments):
        plan, inputs, parameters = self.plan, arguments.inputs, arguments.parameters
        names, neurons = self.step.states, arguments.shape[1:]
        zeros = torch.zeros(neurons, dtype=self.dtype)
        earlier = before_pass(self.step, plan)
        stores = backward_pass(self.step, plan, wants_input=arguments.wants_input)
        places = [i for i, value in enumerate(plan.residuals) if value.op != "input"]
        residuals = [self._read(t, neurons) if t.dtype == torch.uint8 else t for t in arguments.residuals]
        grads = {f"{n}_grad": g for n, g in zip(names, [*arguments.last_grads, None], strict=True)}
        carried = {name: zeros if g is None else g for name, g in grads.items()}
        carried |= {name: zeros for name in stores if name.startswith("sum")}
        to_input = torch.zeros(arguments.shape, dtype=self.dtype)
        for t in reversed(range(arguments.shape[0])):
            leaves = self._shared(parameters) | {
                f"residual{i}": k[t] for i, k in zip(places, residuals, strict=True)
            }
            leaves["x"] = None if inputs is None else inputs[t]
            if t:
                leaves |= {f"residual{i}_earlier": k[t - 1] for i, k in zip(places, residuals, strict=True)}
                leaves["x_earlier"] = None if inputs is None else inputs[t - 1]
                leaves |= self._values(earlier, leaves, zeros)
            else:
                initial = (zeros if f is None else f for f in arguments.first)
                leaves |= {f"{n}_before": f for n, f in zip(names, initial, strict=True)}
            leaves["emitted_grad"] = zeros if arguments.grad_outputs is None else arguments.grad_outputs[t]
            new = self._values(stores, leaves | carried, zeros)
            to_input[t] = new.get("x_grad", zeros)
            carried |= {name: value for name, value in new.items() if name in carried}
        sums = [carried[f"sum{i}"] for i in range(len(self.step.grad_sums))]
        first_grads = [carried[f"{n}_grad"] if arguments.wants_first else None for n in names]
        return to_input if arguments.wants_input else None, first_grads, sums

    def _read(self, bits, one):
        return unpack_bits(bits, one.numel()).view(-1, *one).bool()

    def _shared(self, parameters):
        constants = {f"c[{i}]": torch.tensor(c, dtype=self.dtype) for i, c in enumerate(self.step.constants)}
        return constants | {n: p for i, p in enumerate(parameters) for n in (f"p{i}", f"p{i}[0]")}

    def _values(self, stores, leaves, like):
        results = Neurons(leaves, like.shape, self.dtype).run(stores.values())
        return dict(zip(stores, results, strict=True))


class Neurons(Eager):
    """Evaluates values for all neurons from tensors of the leaves by name."""

    def __init__(self, leaves, shape, dtype):
        super().__init__(dtype)
        self.leaves, self.shape = leaves, shape

    def on_number(self, value):
        return torch.tensor(float(value.data), dtype=self.dtype).expand(self.shape)

    def leaf(self, value):
        return self.leaves[value.data].expand(self.shape)


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
