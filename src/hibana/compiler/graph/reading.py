"""An fx graph of ATen operations read as a :class:`Step`, node by node.

What depends on the cell's tensors alone runs once a call, in PyTorch. Numbers become numbered constants, so
that changing one changes no structure.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hibana.cells import Cell
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
from hibana.compiler.graph.step import Step, Value, Values, rounded
from hibana.runtime import torch_internals


class Reading:
    """Reads an fx graph once, node by node."""

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
        self.made = Values(dtype)
        self.make, self.number = self.made.make, self.made.number
        self.cell_tensors: list[fx.Node] = []
        self.parameters: list[fx.Node] = []
        self.once: set[fx.Node] = set()
        """Nodes that depend on the cell's tensors alone."""
        self.after: set[fx.Node] = set()
        """Nodes that depend on sums over neurons."""
        self.sums: list[fx.Node] = []
        """Per-neuron nodes that gradients of the cell's tensors are summed from."""
        self.layouts: dict[fx.Node, Tensor] = {}
        self.matrices = Matrices(shape, self.once)
        self.outer: dict[fx.Node, tuple[Value, Value]] = {}
        self.behind: set[fx.Node] = set()
        """Nodes that depend on gradients."""
        self.draws = 0

    def step(self) -> Step:
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
        grads, learned = outputs[count : 2 * count + 1], outputs[2 * count + 1 :]
        grad_input, *grad_states = (None if g is None else self._value(g) for g in grads)
        ends = self._ends(learned)
        return Step(
            states=tuple(f"{name}_state" for name in self.names),  # no name of a pass's own ends so
            nexts=nexts,
            grad_input=grad_input,
            grad_states=tuple(grad_states),
            grad_sums=tuple(self._value(node) for node in self.sums),
            constants=tuple(self.made.constants),
            prologue=self._part(self.cell_tensors, [*self.parameters, *self.matrices.nodes]),
            epilogue=self._part([*self.cell_tensors, *self.sums, *self.outer], ends),
            parameters=len(self.parameters),
            matrices=len(self.matrices.nodes),
            outer=tuple(self.outer.values()),
            draws=self.draws,
        )

    def _ends(self, learned: Sequence[Any]) -> list[fx.Node | None]:
        """The node of each tensor's gradient, None where it has none; a sum where it is per neuron."""
        found = iter(learned)
        ends = [next(found) if tensor.requires_grad else None for tensor in self.tensors.values()]
        for end in ends:
            if end is not None and end not in self.after and end not in self.once and end not in self.sums:
                self._sum(end)
        return ends

    def _sum(self, node: fx.Node) -> None:
        if not is_step(self.layouts[node], self.shape):
            raise Unsupported("a sum over neurons that were moved")
        if node not in self.sums:
            self.sums.append(node)

    def _read_leaf(self, node: fx.Node, index: int) -> None:
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
            self.behind.add(node)

    def _read_call(self, node: fx.Node) -> None:
        used = node.all_input_nodes
        target = node.target
        if any(other in self.behind for other in used):
            self.behind.add(node)
        if target is foreign and self.device != "cpu":
            raise Unsupported(f"a tensor of the step's own is on the CPU, not on {self.device}")
        if target in (torch.ops.aten.sum.default, torch.ops.aten.sum.dim_IntList) and used[0] in self.values:
            self.after.add(node)
            self._sum(used[0])
            return
        if has_out_argument(node):
            raise Unsupported(f"{target} writes into a tensor that it was given")
        if target is draw:
            self._read_draw(node)
            return
        name = name_of(target)
        if name in PRODUCTS and any(other in self.values for other in used):
            self._read_product(node, name)
            return
        if target is operator.getitem:
            (self.once if used[0] in self.once else self.after).add(node)
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
            self.after.add(node)  # after the sum over time, as PyTorch does after one over neurons
            self._sum(used[0])
        elif varies:
            self._read_pointwise(node)
        elif target is torch.ops.aten.scalar_tensor.default:
            self.values[node] = self.number(node.args[-1])
        elif self._is_unchanged(node):
            node.replace_all_uses_with(used[0])
        else:
            if writes(node) and len({id(n.meta["val"]) for n in sharing_memory(node)}) > 1:
                raise Unsupported(f"{target} writes into a tensor with another name")
            self.once.add(node)

    def _is_unchanged(self, node: fx.Node) -> bool:
        """Whether `node` is a product with 1, which the derivatives of ``addcmul`` and others are full of."""
        if node.target is not torch.ops.aten.mul.Scalar or type(node.args[1]) not in (int, float):
            return False
        (source,) = node.all_input_nodes
        same_dtype = bool(source.meta["val"].dtype == node.meta["val"].dtype)
        return same_dtype and bool(node.args[1] == 1) and not any(map(writes, self.graph.nodes))

    def _is_narrowed(self, node: fx.Node) -> bool:
        """Whether `node` gives a gradient the narrower dtype of the cell's tensor that it is for."""
        if name_of(node.target) != "_to_copy" or node.all_input_nodes[0] not in self.values:
            return False
        dtype = node.meta["val"].dtype
        of_the_cell = {tensor.dtype for tensor in self.tensors.values() if tensor.requires_grad}
        return dtype != self.dtype and dtype in of_the_cell and self._is_held_by(dtype)

    def _move(self, node: fx.Node, source: fx.Node) -> None:
        """Reads an operation that only moves numbers."""
        assert callable(node.target)
        if node.meta["val"].numel() != self.shape.numel():
            raise Unsupported(f"{node.target} gives a neuron's number to several")
        if node.meta["val"].dtype != source.meta["val"].dtype:
            raise Unsupported(f"{node.target} changes the type")
        self.layouts[node] = moved(self.layouts[source], node.target, node.args[1:], node.kwargs)
        self.values[node] = self.values[source]
        if name_of(node.target) == "squeeze_":
            self.layouts[source] = self.layouts[node]

    def _read_product(self, node: fx.Node, name: str) -> None:
        """Reads a product of a row of neurons, for each sample, with a matrix; or one summed over samples."""
        *added, left, right = node.args
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        if any(node.kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta")):
            raise Unsupported(f"{node.target} with a factor")
        neurons = self.shape[-1] if self.shape else 0
        within = [self.layouts.get(side) for side in (left, right)]
        if left in self.values and right in self.values:
            assert within[0] is not None
            assert within[1] is not None
            if added or not (columns(within[0], neurons) and rows(within[1], neurons)):
                raise Unsupported(f"{node.target} multiplies neurons with one another")
            self.outer[node] = self.values[left], self.values[right]
            self.after.add(node)
            return
        across = left in self.values
        operand, matrix = (left, right) if across else (right, left)
        layout = self.layouts.get(operand)
        if matrix not in self.once or layout is None or matrix.meta["val"].dtype != self.dtype:
            raise Unsupported(f"{node.target} of what is no row of neurons and no matrix of the cell's own")
        size = matrix.meta["val"].shape
        if size[-2:] != (neurons, neurons) or not (rows if across else columns)(layout, neurons):
            raise Unsupported(f"{node.target} of {neurons} neurons with a matrix {tuple(size)}")
        index, turned = self.matrices.place(matrix)
        value = self.make(
            "product", self.values[operand], data=2 * index + (turned if across else not turned)
        )
        self.layouts[node] = layout
        self.values[node] = value
        if added:
            (bias,) = added
            assert isinstance(bias, fx.Node)
            self._check_layout(node, [bias])
            self.values[node] = self.make("add", self._value(bias), value)

    def _check_layout(self, node: fx.Node, used: list[fx.Node]) -> None:
        """Has all of `used` meet neuron by neuron, in the layout of the first of them that has one."""
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
        assert isinstance(node.target, torch_internals.OpOverload)
        if any(user.target is operator.getitem for user in node.users):
            raise Unsupported(f"{node.target}: the step takes several from one operation")
        result = node.meta["val"]
        self._check_layout(node, node.all_input_nodes)
        if result.dtype not in (self.dtype, torch.bool):
            raise Unsupported(f"{node.target} computes in {result.dtype}, not in {self.dtype}")
        target, args = as_computed(node, self.dtype, self.device)
        boolean = result.dtype == torch.bool
        if boolean and all(n.meta["val"].dtype == torch.bool for n in node.all_input_nodes):
            # beside truth values alone, a number is one of the default dtype
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
        self.values[node] = self.make("draw", data=f"{node.args[1]}{self.draws}")
        self.draws += 1

    def _argument(self, argument: Any) -> Value:
        if isinstance(argument, fx.Node):
            return self._value(argument)
        return self.number(argument)

    def _value(self, node: Any) -> Value:
        if node in self.values:
            return self.values[node]
        if node in self.after:
            raise Unsupported("a sum over neurons feeds a neuron")
        tensor = node.meta["val"]
        if tensor.dtype not in (self.dtype, torch.bool) and not self._is_held_by(tensor.dtype):
            raise Unsupported(f"a parameter of the step is {tensor.dtype}, not {self.dtype}")
        self.parameters.append(self._in_full(node))
        value = Value("parameter", data=len(self.parameters) - 1, scalar=tensor.numel() == 1)
        if tensor.dtype == torch.bool:
            value = self.make("to_bool", value)
        self.values[node] = value
        return value

    def _is_held_by(self, dtype: torch.dtype) -> bool:
        """Whether what is computed with a number of `dtype` is computed in this step's dtype, exactly."""
        return dtype.is_floating_point and torch.promote_types(dtype, self.dtype) == self.dtype

    def _in_full(self, node: fx.Node) -> fx.Node:
        """`node`, of a parameter, in the step's dtype: a change of dtype that loses nothing."""
        tensor = node.meta["val"]
        if tensor.dtype == self.dtype:
            return node
        with self.graph.inserting_after(node):
            wide = self.graph.call_function(torch_internals.to_dtype, (node,), {"dtype": self.dtype})
        wide.meta["val"] = tensor.to(self.dtype)
        self.once.add(wide)
        return wide

    def _part(self, inputs: list[fx.Node], outputs: list[Any]) -> Part:
        """The traced operations that lead from the nodes `inputs` to `outputs`, as a function of its own."""
        shapes = {n: self.layouts[n].shape for n in inputs if n in self.sums}
        moved = {n: list(shape) for n, shape in shapes.items() if shape != self.shape}
        return part_between(self.graph, inputs, outputs, moved, self.device)
