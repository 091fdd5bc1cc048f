"""The operations of a network's step in ONNX, to which each layer adds its own."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.leaf import INPUT, Leaf
from hibana.compiler.graph.ops import Operation, Unsupported, row_of
from hibana.compiler.graph.passes import forward_pass
from hibana.compiler.graph.step import Step, Value
from hibana.network.neurons import sparse_matrix, trace_step
from hibana.network.node import Node
from hibana.network.synapses import by_output

__all__ = ["OnnxStep", "int64_tensor"]


class OnnxStep:
    """The operations of one step and of the loop. Layers add the operations of one step with :meth:`op`."""

    def __init__(self, dtype: torch.dtype) -> None:
        import onnx

        self.onnx, self.dtype = onnx, dtype
        array_type = torch.empty(0, dtype=dtype, device="cpu").numpy().dtype
        self.element_type = onnx.helper.np_dtype_to_tensor_dtype(array_type)
        self.step_nodes: list[Any] = []
        self.outer_nodes: list[Any] = []
        """Operations before the loop."""
        self.constants: list[Any] = []
        self.states: list[tuple[str, str, tuple[int, ...]]] = []
        """Names before and after a step, and the shape of one sample."""
        self.count = 0

    def declaration(self, name: str, shape: tuple[int, ...], over_time: bool = False) -> Any:
        """The declaration of the tensor `name`, ``[batch, *shape]``, or ``[T, batch, *shape]``."""
        sizes: list[str | int] = ["T", "batch", *shape] if over_time else ["batch", *shape]
        return self.onnx.helper.make_tensor_value_info(name, self.element_type, sizes)

    def constant(self, values: Tensor, name: str = "") -> str:
        """Adds a constant tensor, and returns its name."""
        name = name or f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(values.detach().contiguous().numpy(), name))
        return name

    def number(self, number: float) -> str:
        """Adds a constant number, and returns its name."""
        return self.constant(torch.tensor(number, dtype=self.dtype, device="cpu"))

    def op(self, op: str, inputs: list[str], name: str = "", outer: bool = False, **settings: Any) -> str:
        """Adds an operation to the step, or before the loop if `outer`; returns its result's name."""
        self.count += 1
        name = name or f"v{self.count}"
        nodes = self.outer_nodes if outer else self.step_nodes
        nodes.append(self.onnx.helper.make_node(op, inputs, [name], **settings))
        return name

    def _add_state(self, name: str, shape: tuple[int, ...], initial: Tensor) -> str:
        """Adds a state that the step writes as `name`, and returns its name before the step.

        Its samples have `shape`, and `initial` broadcasts to ``[batch, *shape]``.
        """
        previous_name = f"{name}_before"
        self.states.append((previous_name, name, shape))
        self.constant(initial, f"{previous_name}_first")
        return previous_name

    def reshaped(self, value: str, shape: tuple[int, ...], new_shape: tuple[int, ...]) -> str:
        """`value`, whose samples have `shape`, with samples of `new_shape`."""
        if shape == new_shape:
            return value
        return self.op("Reshape", [value, self.constant(int64_tensor([-1, *new_shape]))])

    def past(self, value: str, channels: int, pixels: int, reach: int) -> str:
        """`value` at the last steps, ``[batch, channels, reach + 1, pixels]``, the earliest step first."""
        current = self.op("Reshape", [value, self.constant(int64_tensor([-1, channels, 1, pixels]))])
        if reach == 0:
            return current
        next_name = f"past{len(self.states)}"
        zero = torch.zeros((1, 1, 1, 1), dtype=self.dtype, device="cpu")
        previous = self._add_state(next_name, (channels, reach, pixels), zero)
        steps = self.op("Concat", [previous, current], axis=2)
        start, end, axis = (self.constant(int64_tensor([number])) for number in (1, reach + 1, 2))
        self.op("Slice", [steps, start, end, axis], name=next_name)
        return steps

    def gathered_sum(self, value: str, places: Tensor, weights: Tensor, bias: Tensor | None = None) -> str:
        """``sum_k weights[o, k] value[places[o, k]] + bias[o]`` for each output o.

        `value` is ``[batch, numbers]``.
        """
        gathered = self.op("Gather", [value, self.constant(places)], axis=1)
        products = self.op("Mul", [gathered, self.constant(weights)])
        # MatMul, because OpenVINO 2026.4 computes ReduceSum of one number and a bias added to it wrongly
        sums = self.op("MatMul", [products, self.constant(torch.ones_like(weights[0]))])
        return sums if bias is None else self.op("Add", [sums, self.constant(bias)])

    def neurons(self, node: Node, value: str) -> str:
        """Adds the neurons of `node` with the input `value`, and returns the name of their output."""
        step, initial, tensors = trace_step(node, self.dtype)
        stores, names, index = forward_pass(step, None), {INPUT: value}, len(self.states)
        outputs = [f"{leaf}{index}" for leaf in stores]
        for leaf, name, values in zip(step.carried, outputs, initial, strict=True):
            names[leaf] = self._add_state(name, tuple(values.shape[1:]), values)
        try:
            results = _StepValues(self, node, step, names, tensors).run(stores.values())
        except Unsupported as error:
            raise Unsupported(f"layer {node.name!r}: {error}") from error
        for name, result in zip(outputs, results, strict=True):
            self.op("Identity", [result], name=name)
        return outputs[-1]

    def initial_states(self) -> list[str]:
        """The names of the initial states, expanded to the number of samples of the input."""
        if not self.states:
            return []
        start, end = (self.constant(int64_tensor([number])) for number in (1, 2))
        batch = self.op("Slice", [self.op("Shape", ["input"], outer=True), start, end], outer=True)
        names = []
        for before, _, shape in self.states:
            sizes = self.op("Concat", [batch, self.constant(int64_tensor(shape))], outer=True, axis=0)
            names.append(self.op("Expand", [f"{before}_first", sizes], outer=True))
        return names


class _StepValues(Analysis[str]):
    """Adds the values of a neuron's step to an ONNX model: each value's result is its name in the model.

    `rows` has the names of the input and the states; `tensors` are the step's parameters and matrices.
    """

    def __init__(
        self, model: OnnxStep, node: Node, step: Step, rows: dict[Leaf, str], tensors: tuple[Tensor, ...]
    ) -> None:
        super().__init__()
        self.model, self.node, self.step, self.rows, self.tensors = model, node, step, rows, tensors

    def on_number(self, value: Value) -> str:
        """The name of a constant with a number."""
        return self.model.number(float(value.data))

    def on_row(self, value: Value) -> str:
        """The name of the values of an input or state; a tensor of the cell becomes a constant."""
        return self.rows.get(value.leaf) or self.on_scalar(value)

    def on_scalar(self, value: Value) -> str:
        """A constant of the step or a parameter."""
        if value.leaf.kind == "constant":
            return self.model.number(self.step.constants[value.leaf.index])
        return self.model.constant(self.tensors[value.leaf.index].to(self.model.dtype))

    def product(self, value: Value, args: list[str]) -> str:
        """The name of the product of `args` with a weight matrix."""
        index, transposed = value.matrix
        matrix = self.tensors[self.step.parameters + index]
        if index in self.step.sparse:
            synapses = sparse_matrix(self.node, self.step, self.tensors, index)
            numbers = synapses.sources, matrix.detach()
            return self.model.gathered_sum(args[0], *by_output(synapses.targets, self.node.size, *numbers))
        matrix = matrix.reshape(matrix.shape[-2:])
        return self.model.op("MatMul", [*args, self.model.constant(matrix.T if transposed else matrix)])

    def operation(self, value: Value, row: Operation, args: list[str]) -> str:
        """The name of the result of the ONNX operators of `row`, applied one after the other."""
        for op in row_of(row.name, "onnx").onnx.split():
            element_type = self.model.onnx.TensorProto.BOOL if row.boolean else self.model.element_type
            settings: dict[str, Any] = {"to": element_type} if op == "Cast" else {}
            args = [self.model.op(op, args, **settings)]
        return args[0]


def int64_tensor(numbers: Iterable[int]) -> Tensor:
    """`numbers` as a tensor."""
    return torch.tensor(list(numbers), dtype=torch.int64, device="cpu")
