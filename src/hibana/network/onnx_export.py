"""A network as ONNX, with the loop over time in it: a graph whose size does not grow with T."""

from typing import Any

import torch
from torch import Tensor, nn

from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.ops import Operation, Unsupported, row_of
from hibana.compiler.graph.passes import forward_pass
from hibana.compiler.graph.step import Step, Value
from hibana.network.graph import Network, Node
from hibana.network.integer_network import Quantized
from hibana.network.neurons import trace_step
from hibana.network.sliding_window import int64_tensor
from hibana.runtime.extras import explain_import_error

__all__ = ["OnnxStep", "to_onnx"]

OPSET = 17


@explain_import_error("hibana.convert.to_onnx")
def to_onnx(net: nn.Module, example: Tensor) -> Any:
    """`net` as an ONNX model: ``Scan`` over time of one step, so that T and the batch may be any.

    Layers are ONNX's own (``Gemm``, ``Conv``, ``MaxPool``, ``AveragePool``), and take sums in the order
    that the runtime likes: spikes are equal where every sum is exact, as those of :func:`hibana.quantize`
    are. A quantised network is given whole numbers (``integer_input``) and puts out whole numbers; they are
    float64 where float32 does not hold them all, of which onnxruntime has no convolutions.

    Args:
        net: a network, as :func:`to_c` takes it; it is left as it is.
        example: inputs ``[T, batch, ...]``; their dtype is the model's.

    Returns:
        An ``onnx.ModelProto``, from ``input`` ``[T, batch, ...]`` to ``output`` ``[T, batch, ...]``.

    Raises:
        ModuleNotFoundError: if onnx is not installed.
        Unsupported: naming the layer, if ONNX does not say it.
    """
    from hibana.network.reader import read  # which imports the kinds of layers, and these this module

    if isinstance(net, Quantized):
        return to_onnx(net.net, net.integer_input(example))
    with torch.no_grad():
        network = read(net, example)
        return OnnxStep(network).written()


class OnnxStep:
    """An ONNX model under construction: its layers write one step."""

    def __init__(self, network: Network) -> None:
        import onnx

        self.onnx, self.network = onnx, network
        self.kind = onnx.helper.np_dtype_to_tensor_dtype(
            torch.empty(0, dtype=network.dtype, device="cpu").numpy().dtype
        )
        self.body: list[Any] = []
        self.outer: list[Any] = []
        self.constants: list[Any] = []
        self.states: list[tuple[str, str, tuple[int, ...]]] = []
        """Names before and after a step, and shapes."""
        self.count = 0

    def written(self) -> Any:
        """The model."""
        helper = self.onnx.helper
        values: dict[Node, str] = {self.network.input: "x"}
        for node in self.network.nodes[1:]:
            given = [
                self._shaped(values[s], s.shape, seen)
                for s, seen in zip(node.inputs, node.input_shapes, strict=True)
            ]
            values[node] = node.layer.to_onnx(node, given, self)
        out = self._shaped(values[self.network.output], self.network.output.shape, self.network.output_shape)
        self.op("Identity", [out], name="y")
        befores = [self._info(before, shape) for before, _, shape in self.states]
        afters = [self._info(after, shape) for _, after, shape in self.states]
        into, out_of = self._info("x", self.network.input.shape), self._info("y", self.network.output_shape)
        step = helper.make_graph(self.body, "step", [*befores, into], [*afters, out_of])
        firsts = self._at_rest()
        lasts = [f"{after}_last" for _, after, _ in self.states]
        scan = helper.make_node("Scan", [*firsts, "input"], [*lasts, "output"], body=step, num_scan_inputs=1)
        graph = helper.make_graph(
            [*self.outer, scan],
            "network",
            [self._info("input", self.network.input.shape, over_time=True)],
            [self._info("output", self.network.output_shape, over_time=True)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        self.onnx.checker.check_model(model)
        return model

    def _info(self, name: str, shape: tuple[int, ...], over_time: bool = False) -> Any:
        sides: list[str | int] = ["batch", *shape]
        return self.onnx.helper.make_tensor_value_info(name, self.kind, ["T", *sides] if over_time else sides)

    def constant(self, values: Tensor) -> str:
        """The name of a constant tensor."""
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(values.detach().contiguous().numpy(), name))
        return name

    def number(self, number: float) -> str:
        """The name of a constant number."""
        return self.constant(torch.tensor(number, dtype=self.network.dtype, device="cpu"))

    def op(self, op: str, given: list[str], name: str = "", outer: bool = False, **settings: Any) -> str:
        """Writes an operation; the name of its result."""
        self.count += 1
        name = name or f"v{self.count}"
        (self.outer if outer else self.body).append(self.onnx.helper.make_node(op, given, [name], **settings))
        return name

    def state(self, name: str, shape: tuple[int, ...]) -> tuple[str, str]:
        """The names before and after the step of a state that starts as zeros, ``[batch, *shape]``."""
        before, after = f"{name}_before", name
        self.states.append((before, after, shape))
        zero = torch.zeros((1, *(1 for _ in shape)), dtype=self.network.dtype, device="cpu")
        self.constants.append(self.onnx.numpy_helper.from_array(zero.numpy(), f"{before}_first"))
        return before, after

    def _shaped(self, value: str, shape: tuple[int, ...], seen: tuple[int, ...]) -> str:
        if shape == seen:
            return value
        return self.op("Reshape", [value, self.constant(int64_tensor([-1, *seen]))])

    def past(self, value: str, channels: int, pixels: int, reach: int) -> str:
        """`value` at the last steps, ``[batch, channels, reach + 1, pixels]``, the earliest step first."""
        now = self.op("Reshape", [value, self.constant(int64_tensor([-1, channels, 1, pixels]))])
        if reach == 0:
            return now
        before, after = self.state(f"past{len(self.states)}", (channels, reach, pixels))
        steps = self.op("Concat", [before, now], axis=2)
        one, end, axis = (self.constant(int64_tensor([number])) for number in (1, reach + 1, 2))
        self.op("Slice", [steps, one, end, axis], name=after)
        return steps

    def neurons(self, node: Node, value: str) -> str:
        """A layer of neurons that reads `value`; the name of what it emits."""
        step, rest, held = trace_step(node, self.network.dtype)
        try:
            return self._step(step, len(self.states), value, rest, held)
        except Unsupported as refused:
            raise Unsupported(f"layer {node.name!r}: {refused}") from refused

    def _step(
        self, step: Step, at: int, given: str, rest: tuple[Tensor, ...], held: tuple[Tensor, ...]
    ) -> str:
        names = {"x": given}
        for i, (state, first) in enumerate(zip(step.states, rest, strict=True)):
            before = f"{state}{at}_before"
            names["emitted_before" if i == len(step.states) - 1 else state] = before
            self.states.append((before, f"{state}{at}", tuple(first.shape[1:])))
            begun = first.contiguous().numpy()
            self.constants.append(self.onnx.numpy_helper.from_array(begun, f"{before}_first"))
        stores = forward_pass(step, None)
        results = _Writing(self, step, names, held).run(stores.values())
        for name, result in zip(stores, results, strict=True):
            self.op("Identity", [result], name=f"{name}{at}")
        return f"{step.states[-1]}{at}"

    def _at_rest(self) -> list[str]:
        """The states at rest, for as many samples as there are."""
        if not self.states:
            return []
        one = self.constant(int64_tensor([1]))
        sides = self.op("Shape", ["input"], outer=True)
        batch = self.op("Slice", [sides, one, self.constant(int64_tensor([2]))], outer=True)
        firsts = []
        for before, _, shape in self.states:
            sizes = self.op("Concat", [batch, self.constant(int64_tensor(shape))], outer=True, axis=0)
            firsts.append(self.op("Expand", [f"{before}_first", sizes], outer=True))
        return firsts


class _Writing(Analysis[str]):
    """The names of a step's values in an ONNX model; `rows` has those of the input and the states."""

    def __init__(self, model: OnnxStep, step: Step, rows: dict[str, str], held: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.step, self.rows, self.held = model, step, rows, held

    def on_number(self, value: Value) -> str:
        return self.model.number(float(value.data))

    def on_row(self, value: Value) -> str:
        return self.rows.get(str(value.data)) or self.on_scalar(value)

    def on_scalar(self, value: Value) -> str:
        kind, index = str(value.data)[0], int(str(value.data)[1:].strip("[]").partition("[")[0])
        if kind == "c":
            return self.model.number(self.step.constants[index])
        return self.model.constant(self.held[index].to(self.model.network.dtype))

    def product(self, value: Value, args: list[str]) -> str:
        index, transposed = value.matrix
        matrix = self.held[self.step.parameters + index]
        matrix = matrix.reshape(matrix.shape[-2:])
        return self.model.op("MatMul", [*args, self.model.constant(matrix.T if transposed else matrix)])

    def operation(self, value: Value, row: Operation, args: list[str]) -> str:
        for op in row_of(row.name, "onnx").onnx.split():
            kind = self.model.onnx.TensorProto.BOOL if row.boolean else self.model.kind
            settings: dict[str, Any] = {"to": kind} if op == "Cast" else {}
            args = [self.model.op(op, args, **settings)]
        return args[0]
