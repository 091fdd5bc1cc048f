"""Products with a delay for each synapse: one addition for each spike, synapse and tap.

A tap is a weight at a delay of whole steps. A synapse has one tap if its delay is a whole number of steps;
else it has two, at the steps before and after its delay.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hibana.runtime.kernels import FLOAT, LONG, Code, Floats, Group, Ints, Longs, Pointer, Value, kernel
from hibana.spikes.checks import dense_for_more
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.simd.lists import WORD, words_of
from hibana.spikes.simd.rows import VECTOR, transpose

__all__ = ["delayed_product", "delayed_product_forward"]

PARTS = 8
"""Parts of the rows in a weight gradient. The number is fixed, so that the sums do not depend on the number
of threads."""
UNROLLED = 4
"""Synapses per iteration of a loop."""


def delayed_product(
    inputs: Tensor,
    bits: Tensor,
    weight: Tensor,
    lags: Tensor,
    bias: Tensor | None,
    skip: int,
    support: Provenance | None,
) -> Tensor:
    """The result of :func:`delayed_product_forward`, with gradients of `inputs`, `weight` and `bias`.

    `inputs` are the spikes ``[steps, rows, inputs]``; the other arguments are as there. `support` tells where
    the input gradient is needed; None: everywhere.
    """
    apply: Any = _DelayedProduct.apply  # untyped in torch
    leaf = probe() if support is not None else None
    out: Tensor = apply(inputs, weight, bias, leaf, bits, lags, skip, support)
    return out


def delayed_product_forward(
    bits: Tensor, weight: Tensor, lags: Tensor, bias: Tensor | None, steps: int, skip: int
) -> Tensor:
    """``y_t,o = bias_o + sum_k,i W_koi s_(t + skip - lag_oi - k),i``, ``[steps - skip, rows, outputs]``.

    Args:
        bits: the spikes ``[steps * rows, inputs]``, packed to words of 64 bits.
        weight: ``[taps, outputs, inputs]``, with one or two taps.
        lags: delay of the first tap in steps, whole numbers ``[outputs, inputs]``.
        bias: ``[outputs]``.
        steps: number of steps of the spikes.
        skip: number of first steps whose output is not computed.
    """
    outputs = weight.shape[1]
    tensors, sizes = _offsets_and_sizes(bits, weight, lags, steps)
    rows = sizes["rows"]
    out = torch.empty(steps - skip, rows, outputs, dtype=torch.float32, device="cpu")
    bias = None if bias is None else bias.detach().contiguous()
    _forward(rows, **tensors, **sizes, table=_pack_weights(weight), bias=bias, target=out, skip=skip)
    return out


def _offsets_and_sizes(
    bits: Tensor, weight: Tensor, lags: Tensor, steps: int
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Arguments of the kernels: the bits, the offset of each synapse in a row's buffer, and all sizes.

    The buffer of a row is ``[outputs][columns]``, with one column for each step and delay. Raises ValueError
    if an offset would lie outside of the buffer.
    """
    taps, outputs, inputs = weight.shape
    least, most = (int(bound) for bound in lags.aminmax())
    columns = steps + most + taps - 1
    if lags.shape != (outputs, inputs) or least < 0 or outputs * columns >= 1 << 31:
        raise ValueError(
            f"lags must be [{outputs}, {inputs}] steps, 0 or more, and outputs times columns below 2^31; "
            f"got {tuple(lags.shape)} in [{least}, {most}], {columns} columns"
        )
    first = torch.arange(outputs, dtype=torch.int64, device="cpu")[:, None] * columns
    sizes = {"steps": steps, "rows": bits.shape[0] // steps, "inputs": inputs, "outputs": outputs}
    tensors = {"bits": bits, "offsets": (first + lags).T.to(torch.int32).contiguous()}
    return tensors, {**sizes, "columns": columns, "taps": taps}


def _pack_weights(weight: Tensor) -> Tensor:
    """`weight`, ``[taps, outputs, inputs]``, as ``[inputs, outputs, taps]``."""
    return weight.detach().permute(2, 1, 0).contiguous()


def _gradient_mask(support: Provenance | None, bits: Tensor, sizes: dict[str, int]) -> Tensor:
    """Bits like `bits`, set where the input gradient is needed in the backward that is running."""
    inputs = sizes["inputs"]
    if support is not None and support.has_no_observer():
        mask = bits if support.mask is None else support.rows(support.mask, sizes["rows"] * inputs)
        if mask is not None:
            return mask.view_as(bits)
    everywhere = torch.full_like(bits, -1)
    if inputs % WORD:
        everywhere[:, -1] = (1 << inputs % WORD) - 1
    return everywhere


class _DelayedProduct(torch.autograd.Function):
    """The autograd node of the product; it saves the bits of the spikes for the backward, not the spikes."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        leaf: Tensor | None,
        bits: Tensor,
        lags: Tensor,
        skip: int,
        support: Provenance | None,
    ) -> Tensor:
        """Returns the product; saves bits, weights and delays for the backward."""
        ctx.save_for_backward(bits, weight, lags)
        ctx.skip, ctx.support, ctx.steps = skip, support, len(inputs)
        return delayed_product_forward(bits, weight, lags, bias, len(inputs), skip)

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of inputs, weight and bias; None for those not needed and for all other arguments."""
        bits, weight, lags = ctx.saved_tensors
        grad = grad.resolve_neg().contiguous()
        tensors, sizes = _offsets_and_sizes(bits, weight, lags, ctx.steps)
        tensors["gradient"], sizes["skip"] = grad, ctx.skip
        to_inputs = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_inputs = grad.new_zeros(ctx.steps, sizes["rows"], sizes["inputs"])
            masked = {**tensors, "bits": _gradient_mask(ctx.support, bits, sizes)}
            _input_gradient(sizes["rows"], **masked, **sizes, table=_pack_weights(weight), target=to_inputs)
        if ctx.needs_input_grad[1]:
            parts = min(PARTS, sizes["rows"])
            per_part = -(-sizes["rows"] // parts)
            sums = grad.new_empty(parts, sizes["inputs"], sizes["outputs"], sizes["taps"])
            _weight_gradient(parts, **tensors, **sizes, target=sums, per_part=per_part)
            to_weight = sums.sum(0).permute(2, 1, 0)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 1))
        return to_inputs, to_weight, to_bias, None, None, None, None, None


class _Sizes(Group):
    """Sizes that all kernels take."""

    steps: Value
    rows: Value
    inputs: Value
    outputs: Value
    columns: Value
    """Columns of a row's buffer: one for each step and delay."""
    skip: Value


@kernel
def _forward(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    offsets: Ints,
    table: Floats,
    bias: Floats,
    target: Floats,
    sizes: _Sizes,
    taps: int,
) -> None:
    """Writes the product `target`, ``[steps - skip, rows, outputs]``; `bias` may be null.

    One work item is a row over all steps, whose sums are in a buffer ``[outputs][columns]``.
    """
    outputs, columns, steps = sizes.outputs, sizes.columns, sizes.steps - sizes.skip
    with code.scratch((Floats, outputs * columns)) as (sums,), code.loop(begin, end) as row:
        sums.clear(outputs * columns)

        def add_spike(step: Value, input_: Value) -> None:
            """Adds the weights of one spike to the sums."""
            for synapse, at in _synapses(code, offsets, outputs, sums, step, input_):
                at.store(at.load(taps) + (table + synapse * taps).load(taps))

        _for_each_spike(code, bits, sizes, row, add_spike)
        out, stride = target + row * outputs, sizes.rows * outputs
        transpose(code, out, stride, sums + sizes.skip, columns, outputs, steps)
        with code.when(bias.is_not_null()), code.loop(0, steps) as step:
            for k, mask in code.vectors(outputs, VECTOR):
                at = out + (step * stride + k)
                at.store(at.load(VECTOR, mask) + (bias + k).load(VECTOR, mask), mask)


@kernel
def _weight_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    offsets: Ints,
    gradient: Floats,
    target: Floats,
    sizes: _Sizes,
    per_part: Value,
    taps: int,
) -> None:
    """The weight gradient ``[parts][inputs][outputs][taps]``. One work item is a part of the rows."""
    outputs = sizes.outputs
    with code.scratch((Floats, outputs * sizes.columns)) as (columns,), code.loop(begin, end) as part:
        size = sizes.inputs * outputs * taps
        part_sums = target + part * size
        part_sums.clear(size)
        with code.loop(part * per_part, ((part + 1) * per_part).smaller(sizes.rows)) as row:
            _transpose_gradient(code, gradient, columns, sizes, row)

            def add_spike(step: Value, input_: Value) -> None:
                """Adds the output gradients that one spike reaches to the weight gradient."""
                for synapse, at in _synapses(code, offsets, outputs, columns, step, input_):
                    total = part_sums + synapse * taps
                    total.store(total.load(taps) + at.load(taps))

            _for_each_spike(code, bits, sizes, row, add_spike)


@kernel
def _input_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    offsets: Ints,
    table: Floats,
    gradient: Floats,
    target: Floats,
    sizes: _Sizes,
    taps: int,
) -> None:
    """The input gradient where `bits` are set. One work item is a row over all steps.

    `target` must hold zeros.
    """
    outputs = sizes.outputs
    with code.scratch((Floats, outputs * sizes.columns)) as (columns,), code.loop(begin, end) as row:
        _transpose_gradient(code, gradient, columns, sizes, row)

        def write_gradient(step: Value, input_: Value) -> None:
            """Writes the gradient of one input at one step."""
            sums = code.variable(0.0, FLOAT.of(taps))
            for synapse, at in _synapses(code, offsets, outputs, columns, step, input_):
                sums.value += at.load(taps) * (table + synapse * taps).load(taps)
            total = sums.value if taps == 1 else sums.value.lane(0) + sums.value.lane(1)
            target[(step * sizes.rows + row) * sizes.inputs + input_] = total

        _for_each_spike(code, bits, sizes, row, write_gradient)


def _synapses(
    code: Code, offsets: Ints, outputs: Value, columns: Pointer, step: Value, input_: Value
) -> Iterator[tuple[Value, Pointer]]:
    """Iterates over the synapses of an input: the index of each, and its address in `columns` at `step`.

    Emits a loop that is unrolled by UNROLLED.
    """
    first = input_ * outputs

    def synapse(output: Value) -> tuple[Value, Pointer]:
        """The index of the synapse to `output`, and its address in `columns` at `step`."""
        return first + output, columns + (offsets[first + output].to(LONG) + step)

    unrolled_count = outputs - outputs % UNROLLED
    with code.loop(0, unrolled_count, UNROLLED) as output:
        for offset in range(UNROLLED):
            yield synapse(output + offset)
    with code.loop(unrolled_count, outputs) as output:
        yield synapse(output)


def _for_each_spike(
    code: Code, bits: Longs, sizes: _Sizes, row: Value, write: Callable[[Value, Value], None]
) -> None:
    """Emits loops over the spikes of a row, with the code that `write` emits for a step and an input."""
    words = words_of(sizes.inputs)
    with (
        code.loop(0, sizes.steps) as step,
        code.loop(0, words) as word,
        code.each_bit(bits[(step * sizes.rows + row) * words + word]) as bit,
    ):
        write(step, word * WORD + bit)


def _transpose_gradient(code: Code, gradient: Floats, target: Pointer, sizes: _Sizes, row: Value) -> None:
    """Transposes the gradient of a row to ``[outputs][columns]``, with zeros for steps without output."""
    outputs, columns, steps = sizes.outputs, sizes.columns, sizes.steps - sizes.skip
    target.clear(outputs * columns)
    row_gradient = gradient + row * outputs
    transpose(code, target + sizes.skip, columns, row_gradient, sizes.rows * outputs, steps, outputs)
