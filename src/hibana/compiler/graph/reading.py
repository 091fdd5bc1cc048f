"""Converts an fx graph of ATen operations to a :class:`Step`, node by node.

Operations on the cell's tensors alone are not part of the step: PyTorch runs them once per call. Python
numbers become numbered constants, so steps that differ only in numbers have equal graphs.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hibana.cells import Cell
from hibana.compiler.draws import poisson
from hibana.compiler.graph.aten import translate
from hibana.compiler.graph.nodes import (
    MOVES,
    PRODUCTS,
    Matrices,
    as_computed,
    columns,
    has_out_argument,
    is_step,
    moved,
    name_of,
    rows,
    same,
    sharing_memory,
    step_layout,
    writes,
)
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.part import Part, part_between
from hibana.compiler.graph.recorder import draw, foreign
from hibana.compiler.graph.sparse import PRODUCT, SUMS
from hibana.compiler.graph.step import Step, Value, Values, rounded
from hibana.runtime import torch_internals


class Reading:
    """Converts the fx graph of a step of `shape`, node by node. An instance converts one graph."""

    def __init__(
        self,
        cell: Cell,
        tensors: dict[str, Tensor],
        graph: fx.Graph,
        shape: torch.Size,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.names = cell.state_names()
        self.tensors = tensors
        self.graph = graph
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.values: dict[fx.Node, Value] = {}
        """The value of each node that has a number per neuron."""
        self.step_values = Values(dtype)
        self.make, self.number = self.step_values.make, self.step_values.number
        self.cell_tensors: list[fx.Node] = []
        self.parameters: list[fx.Node] = []
        self.once: set[fx.Node] = set()
        """Nodes that depend on the cell's tensors alone."""
        self.after: set[fx.Node] = set()
        """Nodes that depend on sums over neurons."""
        self.sums: list[fx.Node] = []
        """Nodes with a number per neuron, whose sums give gradients of the cell's tensors."""
        self.layouts: dict[fx.Node, Tensor] = {}
        """The layout of each node in :attr:`values` (:mod:`hibana.compiler.graph.nodes`)."""
        self.matrices = Matrices(shape, self.once)
        self.outer: dict[fx.Node, tuple[Value, Value]] = {}
        """The two factors of each outer product that is summed over samples."""
        self.summed_at: list[int | None] = []
        """For each product in :attr:`outer`, the sparse matrix whose synapses need a sum, or None."""
        self.draws = 0

    def step(self) -> Step:
        """Converts the recorded graph of a cell's step to a `Step`.

        Raises Unsupported if an operation is not pointwise, no matrix product, or not in the table.
        """
        leaves = [node for node in self.graph.nodes if node.op == "placeholder"]
        for index, node in enumerate(leaves):
            self._read_leaf(node, index)
        for node in self.graph.nodes:
            if node.op == "call_function":
                self._read_call(node)
        (outputs,) = self.graph.output_node().args
        assert isinstance(outputs, tuple)
        count = len(self.names)
        nexts = tuple(self._value(node) for node in outputs[:count])
        grads, tensor_grads = outputs[count : 2 * count + 1], outputs[2 * count + 1 :]
        grad_input, *grad_states = (None if g is None else self._value(g) for g in grads)
        epilogue_outputs = self._epilogue_outputs(tensor_grads)
        index_nodes = [node for nodes in self.matrices.sparse.values() for node in nodes]
        return Step(
            states=tuple(self.names),
            nexts=nexts,
            grad_input=grad_input,
            grad_states=tuple(grad_states),
            grad_sums=tuple(self._value(node) for node in self.sums),
            constants=tuple(self.step_values.constants),
            prologue=self._part(self.cell_tensors, [*self.parameters, *self.matrices.nodes, *index_nodes]),
            epilogue=self._part([*self.cell_tensors, *self.sums, *self.outer], epilogue_outputs),
            parameters=len(self.parameters),
            matrices=len(self.matrices.nodes),
            outer=tuple(self.outer.values()),
            sparse=tuple(self.matrices.sparse),
            summed_at=tuple(self.summed_at),
            draws=self.draws,
        )

    def _epilogue_outputs(self, tensor_grads: Sequence[Any]) -> list[fx.Node | None]:
        """For each tensor of the cell, the node of its gradient; None without a gradient.

        `tensor_grads` are the nodes of tensors that require a gradient. A gradient per neuron is summed over
        time.
        """
        gradients = iter(tensor_grads)
        nodes = [next(gradients) if tensor.requires_grad else None for tensor in self.tensors.values()]
        for node in nodes:
            if node is not None and node not in self.after and node not in self.once:
                self._sum(node)
        return nodes

    def _sum(self, node: fx.Node) -> None:
        """Adds `node`, a gradient per neuron, to the values that kernels sum over time."""
        if not is_step(self.layouts[node], self.shape):
            raise Unsupported("a sum over neurons that were moved")
        if node not in self.sums:
            self.sums.append(node)

    def _read_leaf(self, node: fx.Node, index: int) -> None:
        """Reads the placeholder `index`, in the order of :func:`joint_graph`."""
        count = len(self.names)
        if index <= count or index > count + len(self.tensors):
            self.layouts[node] = step_layout(self.shape)
        if index == 0:
            self.values[node] = Value("input")
        elif index <= count:
            self.values[node] = Value("previous", data=index - 1)
        elif index <= count + len(self.tensors):
            self.cell_tensors.append(node)
            self.once.add(node)
        else:
            self.values[node] = Value("gradient", data=index - 1 - count - len(self.tensors))

    def _read_call(self, node: fx.Node) -> None:
        """Classifies one operation of the graph and converts it if it runs at each step.

        Operations on the cell's tensors alone run once, before the first step (prologue). Operations on sums
        over neurons run once, after the last step (epilogue).
        """
        used = node.all_input_nodes
        target = node.target
        if target is foreign and self.device != "cpu":
            raise Unsupported(f"a tensor in the code of the step is on the CPU, not on {self.device}")
        if target in (torch.ops.aten.sum.default, torch.ops.aten.sum.dim_IntList) and used[0] in self.values:
            self.after.add(node)
            self._sum(used[0])
            return
        if has_out_argument(node):
            raise Unsupported(f"{target} writes to its argument `out`")
        if target is draw:
            self._read_draw(node)
            return
        if target is poisson:
            self._check_layout(node, node.all_input_nodes)
            self.values[node] = self.make("poisson", *map(self._value, node.args))
            return
        if target in (PRODUCT, SUMS):
            self._read_sparse(node)
            return
        name = name_of(target)
        if name in PRODUCTS and any(other in self.values for other in used):
            self._read_product(node, name)
            return
        if target is operator.getitem:
            constants_or_sums = self.once if used[0] in self.once else self.after
            constants_or_sums.add(node)
            return
        if name in MOVES and used[0] in self.values:
            self._move(node, used[0])
            return
        varies = any(other in self.values and other not in self.once for other in used)
        if any(other in self.after for other in used):
            if varies:
                raise Unsupported(f"{target} mixes neurons with a sum over neurons")
            self.after.add(node)
        elif self._is_narrowed(node):
            self.after.add(node)  # PyTorch converts after summing over neurons
            self._sum(used[0])
        elif varies:
            self._read_pointwise(node)
        elif target is torch.ops.aten.scalar_tensor.default:
            self.values[node] = self.number(node.args[-1])
        else:
            if writes(node) and len({id(n.meta["val"]) for n in sharing_memory(node)}) > 1:
                raise Unsupported(f"{target} writes into a tensor with another name")
            self.once.add(node)

    def _is_narrowed(self, node: fx.Node) -> bool:
        """Whether `node` converts a gradient to the narrower dtype of a tensor of the cell."""
        if name_of(node.target) != "_to_copy" or node.all_input_nodes[0] not in self.values:
            return False
        dtype = node.meta["val"].dtype
        cell_dtypes = {tensor.dtype for tensor in self.tensors.values() if tensor.requires_grad}
        is_narrower = dtype != self.dtype and self._converts_exactly(dtype)  # without loss, to `self.dtype`
        return is_narrower and dtype in cell_dtypes

    def _move(self, node: fx.Node, source: fx.Node) -> None:
        """Reads an operation that only moves the numbers of `source`, such as a view or a transposition."""
        assert callable(node.target)
        if node.meta["val"].numel() != self.shape.numel():
            raise Unsupported(f"{node.target} copies the number of a neuron to several neurons")
        if node.meta["val"].dtype != source.meta["val"].dtype:
            raise Unsupported(f"{node.target} changes the dtype")
        self.layouts[node] = moved(self.layouts[source], node.target, node.args[1:], node.kwargs)
        self.values[node] = self.values[source]
        if name_of(node.target) == "squeeze_":
            self.layouts[source] = self.layouts[node]

    def _read_product(self, node: fx.Node, name: str) -> None:
        """Reads a matrix product of the operation `name`.

        One factor is a matrix ``[neurons, neurons]`` of the cell, or both have a number per neuron and sample
        and are summed over samples, as in the gradient of such a matrix.
        """
        *added, left, right = node.args
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        if any(node.kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta")):
            raise Unsupported(f"{node.target} with a factor")
        neurons = self.shape[-1] if self.shape else 0
        if left in self.values and right in self.values:
            if added or not (columns(self.layouts[left], neurons) and rows(self.layouts[right], neurons)):
                raise Unsupported(f"{node.target} multiplies neurons with one another")
            self._add_outer(node, left, right, None)
            return
        vector_is_left = left in self.values
        vector, matrix = (left, right) if vector_is_left else (right, left)
        layout = self.layouts.get(vector)
        if matrix not in self.once or layout is None or matrix.meta["val"].dtype != self.dtype:
            raise Unsupported(f"{node.target} must multiply neurons with a matrix of the cell")
        size = matrix.meta["val"].shape
        if size[-2:] != (neurons, neurons) or not (rows if vector_is_left else columns)(layout, neurons):
            raise Unsupported(f"{node.target} of {neurons} neurons with a matrix {tuple(size)}")
        index, transposed = self.matrices.place(matrix)
        value = self.make("product", self.values[vector], data=2 * index + (transposed == vector_is_left))
        self.layouts[node] = layout
        self.values[node] = value
        if added:
            (bias,) = added
            assert isinstance(bias, fx.Node)
            self._check_layout(node, [bias])
            self.values[node] = self.make("add", self._value(bias), value)

    def _add_outer(self, node: fx.Node, left: fx.Node, right: fx.Node, matrix: int | None) -> None:
        """Records that `node` is a gradient of weights: products of `left` and `right`, summed over samples.

        A kernel computes it after the loop over time. `matrix` is the index of a sparse matrix, whose stored
        synapses alone get sums; None: all pairs of neurons.
        """
        self.outer[node] = self.values[left], self.values[right]
        self.summed_at.append(matrix)
        self.after.add(node)

    def _read_sparse(self, node: fx.Node) -> None:
        """Reads a product with a sparse matrix, or the gradient of its weights."""
        arguments: Any = node.args  # rows of neurons, one or two, then the matrix
        *rows, weights, row_starts, targets, outputs = arguments if node.target is SUMS else arguments[:-1]
        neurons, dtype = self.shape[-1] if self.shape else 0, weights.meta["val"].dtype
        starts = row_starts.meta["val"].shape
        if outputs != neurons or starts != (neurons + 1,) or dtype != self.dtype:
            size = f"{starts[0] - 1} to {outputs} in {dtype}"
            raise Unsupported(f"a step of {neurons} neurons in {self.dtype} has sparse synapses from {size}")
        for row in rows:
            layout = self.layouts.get(row)
            if layout is None or layout.shape[-1:] != (neurons,) or not is_step(layout, self.shape):
                raise Unsupported("a sparse matrix must multiply the neurons of the step, in their order")
        index = self.matrices.place_sparse(weights, row_starts, targets)
        if node.target is SUMS:
            self._add_outer(node, rows[0], rows[1], index)
            return
        self.layouts[node] = self.layouts[rows[0]]
        self.values[node] = self.make("product", self.values[rows[0]], data=2 * index + arguments[-1])

    def _check_layout(self, node: fx.Node, used: list[fx.Node]) -> None:
        """Sets the layout of `node` to the layout of its arguments `used`, which must all be the same."""
        shape = node.meta["val"].shape
        layouts = [self.layouts[other] for other in used if other in self.layouts]
        layouts += [self.layouts[node]] if node in self.layouts else []
        if any(not same(layout, layouts[0], shape) for layout in layouts):
            raise Unsupported(f"{node.target} changes the shape from {self.shape} to {tuple(shape)}")
        if shape != self.shape:
            others = (other.meta["val"] for other in used if other not in self.layouts)
            joined = is_step(layouts[0], self.shape) and shape[-1:] == self.shape[-1:]
            if any(other.numel() > 1 and not (joined and other.ndim == 1) for other in others):
                raise Unsupported(f"{node.target} changes the shape from {self.shape} to {tuple(shape)}")
        self.layouts[node] = layouts[0]

    def _read_pointwise(self, node: fx.Node) -> None:
        """Reads an operation neuron by neuron, which may write to its first argument."""
        assert isinstance(node.target, torch_internals.OpOverload)
        if any(user.target is operator.getitem for user in node.users):
            raise Unsupported(f"{node.target} has several results")
        result = node.meta["val"]
        self._check_layout(node, node.all_input_nodes)
        if result.dtype not in (self.dtype, torch.bool):
            raise Unsupported(f"{node.target} computes in {result.dtype}, not in {self.dtype}")
        target, args = as_computed(node, self.dtype, self.device)
        boolean = result.dtype == torch.bool
        if boolean and all(n.meta["val"].dtype == torch.bool for n in node.all_input_nodes):
            # with boolean tensors only, PyTorch rounds numbers to the default dtype
            args = tuple(rounded(a, torch.get_default_dtype()) for a in args)
        value = translate(target, args, node.kwargs, self._argument, self.make, boolean=boolean)
        if writes(node):
            for other in sharing_memory(node):
                if other in self.once or other.meta["val"].shape != self.shape:
                    raise Unsupported(f"{target} writes into a part of a tensor, or one with another name")
                self.values[other] = value
        self.values[node] = value

    def _read_draw(self, node: fx.Node) -> None:
        """Reads random numbers: one for each neuron, in the order of the neurons."""
        order, result, (like,) = step_layout(self.shape), node.meta["val"], node.all_input_nodes
        if result.shape != self.shape or not same(self.layouts.get(like, order), order, self.shape):
            raise Unsupported(
                f"draws must have the step's shape {tuple(self.shape)}, in the order of its neurons; got "
                f"{tuple(result.shape)}"
            )
        if result.dtype != self.dtype:
            raise Unsupported(f"random numbers of {result.dtype} in a step that computes in {self.dtype}")
        self.layouts[node] = order
        self.values[node] = self.make(str(node.args[1]), data=self.draws)
        self.draws += 1

    def _argument(self, argument: Any) -> Value:
        """The value of an argument: a node or a number."""
        if isinstance(argument, fx.Node):
            return self._value(argument)
        return self.number(argument)

    def _value(self, node: Any) -> Value:
        """The value of `node`, which becomes a parameter if it depends on the cell's tensors alone."""
        if node in self.values:
            return self.values[node]
        if node in self.after:
            raise Unsupported("the step uses a sum over neurons")
        tensor = node.meta["val"]
        if tensor.dtype not in (self.dtype, torch.bool) and not self._converts_exactly(tensor.dtype):
            raise Unsupported(f"a parameter of the step is {tensor.dtype}, not {self.dtype}")
        self.parameters.append(self._in_step_dtype(node))
        value = Value("parameter", data=len(self.parameters) - 1, scalar=tensor.numel() == 1)
        if tensor.dtype == torch.bool:
            value = self.make("to_bool", value)
        self.values[node] = value
        return value

    def _converts_exactly(self, dtype: torch.dtype) -> bool:
        """Whether numbers of `dtype` are exact in the dtype of the step, and promoted to it."""
        return dtype.is_floating_point and torch.promote_types(dtype, self.dtype) == self.dtype

    def _in_step_dtype(self, node: fx.Node) -> fx.Node:
        """`node`, a parameter, converted to the dtype of the step."""
        tensor = node.meta["val"]
        if tensor.dtype == self.dtype:
            return node
        with self.graph.inserting_after(node):
            wide = self.graph.call_function(torch_internals.to_dtype, (node,), {"dtype": self.dtype})
        wide.meta["val"] = tensor.to(self.dtype)
        self.once.add(wide)
        return wide

    def _part(self, inputs: list[fx.Node], outputs: list[Any]) -> Part:
        """The traced operations from `inputs` to `outputs`, as a function of tensors.

        Sums over time arrive in the step's shape, and are first reshaped to the shape in the trace.
        """
        shapes = {n: self.layouts[n].shape for n in inputs if n in self.sums}
        reshaped = {n: list(shape) for n, shape in shapes.items() if shape != self.shape}
        return part_between(self.graph, inputs, outputs, reshaped, self.device)
