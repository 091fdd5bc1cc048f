"""Products with a delay for each synapse: one addition for each spike, synapse and tap.

A tap is a weight at a whole delay: a synapse whose delay is a whole number of steps has one, any other has
two, at the steps before and after.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hibana.runtime.kernels import FLOAT, LONG, Code, Floats, Group, Ints, Longs, Pointer, Value, kernel
from hibana.spikes.checks import dense_for_more
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.simd.lists import WORD, words_of
from hibana.spikes.simd.rows import VECTOR, transposed

__all__ = ["delayed_product", "delayed_product_forward"]

PARTS = 8
"""Parts that the rows are divided into for a weight gradient, whatever the number of threads, so that the
sums do not depend on it."""
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

    Args:
        inputs: spikes ``[steps, rows, inputs]``.
        bits: as of :func:`delayed_product_forward`.
        weight: as of :func:`delayed_product_forward`.
        lags: as of :func:`delayed_product_forward`.
        bias: as of :func:`delayed_product_forward`.
        skip: as of :func:`delayed_product_forward`.
        support: provenance of `inputs`, whose mask restricts their gradient; None for everywhere.
    """
    apply: Any = _Delayed.apply  # torch leaves it without types
    leaf = probe() if support is not None else None
    out: Tensor = apply(inputs, weight, bias, leaf, bits, lags, skip, support)
    return out


def delayed_product_forward(
    bits: Tensor, weight: Tensor, lags: Tensor, bias: Tensor | None, steps: int, skip: int
) -> Tensor:
    """``y_t,o = bias_o + sum_k,i W_koi s_(t + skip - lag_oi - k),i``, ``[steps - skip, rows, outputs]``.

    Args:
        bits: of spikes ``[steps * rows, inputs]``, packed to words of 64.
        weight: ``[taps, outputs, inputs]``, one tap or two.
        lags: delay of the first tap in steps, whole numbers ``[outputs, inputs]``.
        bias: ``[outputs]``.
        steps: number of steps of the spikes.
        skip: number of first steps for which no output is computed.
    """
    outputs = weight.shape[1]
    given, sizes = _places(bits, weight, lags, steps)
    rows = sizes["rows"]
    out = torch.empty(steps - skip, rows, outputs, dtype=torch.float32, device="cpu")
    bias = None if bias is None else bias.detach().contiguous()
    _scatter(rows, **given, **sizes, table=_tables(weight), bias=bias, target=out, skip=skip)
    return out


def _places(
    bits: Tensor, weight: Tensor, lags: Tensor, steps: int
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The index of each synapse's target in a row's outputs ``[outputs][columns]``, and all sizes.

    Raises:
        ValueError: if an index would lie outside the row.
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
    given = {"bits": bits, "places": (first + lags).T.to(torch.int32).contiguous()}
    return given, {**sizes, "columns": columns, "taps": taps}


def _tables(weight: Tensor) -> Tensor:
    """`weight` as ``[inputs, outputs, taps]``."""
    return weight.detach().permute(2, 1, 0).contiguous()


def _wanted(below: Provenance | None, bits: Tensor, sizes: dict[str, int]) -> Tensor:
    """The bits of where the input gradient is computed, in the backward that runs now."""
    inputs = sizes["inputs"]
    if below is not None and below.has_no_observer():
        known = bits if below.mask is None else below.rows(below.mask, sizes["rows"] * inputs)
        if known is not None:
            return known.view_as(bits)
    everywhere = torch.full_like(bits, -1)
    if inputs % WORD:
        everywhere[:, -1] = (1 << inputs % WORD) - 1
    return everywhere


class _Delayed(torch.autograd.Function):
    """Saves the bits of the spikes for the backward, not the spikes."""

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
        ctx.save_for_backward(bits, weight, lags)
        ctx.skip, ctx.below, ctx.steps = skip, support, len(inputs)
        return delayed_product_forward(bits, weight, lags, bias, len(inputs), skip)

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        bits, weight, lags = ctx.saved_tensors
        grad = grad.resolve_neg().contiguous()
        given, sizes = _places(bits, weight, lags, ctx.steps)
        given["gradient"], sizes["skip"] = grad, ctx.skip
        to_inputs = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_inputs = grad.new_zeros(ctx.steps, sizes["rows"], sizes["inputs"])
            wanted = {**given, "bits": _wanted(ctx.below, bits, sizes)}
            _to_inputs(sizes["rows"], **wanted, **sizes, table=_tables(weight), target=to_inputs)
        if ctx.needs_input_grad[1]:
            parts = min(PARTS, sizes["rows"])
            per_part = -(-sizes["rows"] // parts)
            summed = grad.new_empty(parts, sizes["inputs"], sizes["outputs"], sizes["taps"])
            _to_weights(parts, **given, **sizes, target=summed, per_part=per_part)
            to_weight = summed.sum(0).permute(2, 1, 0)
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
    """Sums of an output: one for each step and delay."""
    skip: Value


@kernel
def _scatter(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    places: Ints,
    table: Floats,
    bias: Floats,
    target: Floats,
    sizes: _Sizes,
    taps: int,
) -> None:
    """The forward. One work item is a row over all steps, summed as ``[outputs][columns]``."""
    outputs, columns, steps = sizes.outputs, sizes.columns, sizes.steps - sizes.skip
    with code.scratch((Floats, outputs * columns)) as (sums,), code.loop(begin, end) as row:
        sums.clear(outputs * columns)

        def spike(step: Value, input_: Value) -> None:
            for synapse, at in _synapses(code, places, outputs, sums, step, input_):
                at.store(at.load(taps) + (table + synapse * taps).load(taps))

        _each_spike(code, bits, sizes, row, spike)
        out, stride = target + row * outputs, sizes.rows * outputs
        transposed(code, out, stride, sums + sizes.skip, columns, outputs, steps)
        with code.when(bias.is_not_null()), code.loop(0, steps) as step:
            for k, there in code.vectors(outputs, VECTOR):
                at = out + (step * stride + k)
                at.store(at.load(VECTOR, there) + (bias + k).load(VECTOR, there), there)


@kernel
def _to_weights(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    places: Ints,
    gradient: Floats,
    target: Floats,
    sizes: _Sizes,
    per_part: Value,
    taps: int,
) -> None:
    """The weight gradient ``[inputs][outputs][taps]``. One work item is a part of the rows."""
    outputs = sizes.outputs
    with code.scratch((Floats, outputs * sizes.columns)) as (turned,), code.loop(begin, end) as part:
        size = sizes.inputs * outputs * taps
        own = target + part * size
        own.clear(size)
        with code.loop(part * per_part, ((part + 1) * per_part).smaller(sizes.rows)) as row:
            _turn(code, gradient, turned, sizes, row)

            def spike(step: Value, input_: Value) -> None:
                for synapse, at in _synapses(code, places, outputs, turned, step, input_):
                    sum_ = own + synapse * taps
                    sum_.store(sum_.load(taps) + at.load(taps))

            _each_spike(code, bits, sizes, row, spike)


@kernel
def _to_inputs(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    places: Ints,
    table: Floats,
    gradient: Floats,
    target: Floats,
    sizes: _Sizes,
    taps: int,
) -> None:
    """The input gradient where `bits` are set. One work item is a row over all steps; `target` holds zeros
    before.
    """
    outputs = sizes.outputs
    with code.scratch((Floats, outputs * sizes.columns)) as (turned,), code.loop(begin, end) as row:
        _turn(code, gradient, turned, sizes, row)

        def wanted(step: Value, input_: Value) -> None:
            sums = code.variable(0.0, FLOAT.of(taps))
            for synapse, at in _synapses(code, places, outputs, turned, step, input_):
                sums.value += at.load(taps) * (table + synapse * taps).load(taps)
            found = sums.value if taps == 1 else sums.value.lane(0) + sums.value.lane(1)
            target[(step * sizes.rows + row) * sizes.inputs + input_] = found

        _each_spike(code, bits, sizes, row, wanted)


def _synapses(
    code: Code, places: Ints, outputs: Value, columns: Pointer, step: Value, input_: Value
) -> Iterator[tuple[Value, Pointer]]:
    """The synapses of an input, and where each meets `columns` at this step; unrolled by UNROLLED."""
    first = input_ * outputs

    def synapse(output: Value) -> tuple[Value, Pointer]:
        return first + output, columns + (places[first + output].to(LONG) + step)

    whole = outputs - outputs % UNROLLED
    with code.loop(0, whole, UNROLLED) as output:
        for offset in range(UNROLLED):
            yield synapse(output + offset)
    with code.loop(whole, outputs) as rest:
        yield synapse(rest)


def _each_spike(
    code: Code, bits: Longs, sizes: _Sizes, row: Value, write: Callable[[Value, Value], None]
) -> None:
    """Calls `write` with step and input for each spike of a row."""
    words = words_of(sizes.inputs)
    with (
        code.loop(0, sizes.steps) as step,
        code.loop(0, words) as word,
        code.each_bit(bits[(step * sizes.rows + row) * words + word]) as bit,
    ):
        write(step, word * WORD + bit)


def _turn(code: Code, gradient: Floats, turned: Pointer, sizes: _Sizes, row: Value) -> None:
    """Transposes a row's gradient to ``[outputs][columns]``, with zeros for steps without output."""
    outputs, columns, steps = sizes.outputs, sizes.columns, sizes.steps - sizes.skip
    turned.clear(outputs * columns)
    of_row = gradient + row * outputs
    transposed(code, turned + sizes.skip, columns, of_row, sizes.rows * outputs, steps, outputs)
