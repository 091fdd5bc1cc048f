"""Products with a delay for each synapse: one addition for each spike, synapse and tap.

A tap is a weight at a whole delay: a synapse whose delay is a whole number of steps has one, any other has
two, at the steps before and after.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hibana.runtime.kernels import FLOAT, LONG, Code, Floats, Ints, Longs, Pointer, Value, kernel
from hibana.spikes.checks import dense_for_more
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.simd.lists import WORD, words_of
from hibana.spikes.simd.rows import VECTOR, transposed

__all__ = ["delayed", "scattered"]

PARTS = 8
"""Parts that the rows are divided into for a weight gradient, whatever the number of threads, so that the
sums do not depend on it."""
UNROLLED = 4
"""Synapses per iteration of a loop."""


def delayed(
    inputs: Tensor,
    bits: Tensor,
    weight: Tensor,
    lags: Tensor,
    bias: Tensor | None,
    skip: int,
    support: Provenance | None,
) -> Tensor:
    """The result of :func:`scattered`, with gradients of `inputs`, `weight` and `bias`.

    Args:
        inputs: spikes ``[steps, rows, inputs]``.
        bits: as of :func:`scattered`.
        weight: as of :func:`scattered`.
        lags: as of :func:`scattered`.
        bias: as of :func:`scattered`.
        skip: as of :func:`scattered`.
        support: provenance of `inputs`, whose mask restricts their gradient; None for everywhere.
    """
    apply: Any = _Delayed.apply  # torch leaves it without types
    leaf = probe() if support is not None else None
    out: Tensor = apply(inputs, weight, bias, leaf, bits, lags, skip, support)
    return out


def scattered(
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
        known = bits if below.bits is None else below.rows(below.bits, sizes["rows"] * inputs)
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
        return scattered(bits, weight, lags, bias, len(inputs), skip)

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
    steps: Value,
    rows: Value,
    inputs: Value,
    outputs: Value,
    columns: Value,
    skip: Value,
    taps: int,
) -> None:
    """The forward. One work item is a row over all steps, summed as ``[outputs][columns]``."""
    with code.scratch((Floats, outputs * columns)) as (sums,), code.loop(begin, end) as row:
        sums.clear(outputs * columns)

        def spike(step: Value, input_: Value) -> None:
            first = input_ * outputs
            for k in _unrolled(code, outputs):
                at = sums + (places[first + k].to(LONG) + step)
                at.store(at.load(taps) + (table + (first + k) * taps).load(taps))

        _each_spike(code, bits, steps, rows, inputs, row, spike)
        out, stride = target + row * outputs, rows * outputs
        transposed(code, out, stride, sums + skip, columns, outputs, steps - skip)
        with code.when(bias.given()), code.loop(0, steps - skip) as step:
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
    steps: Value,
    rows: Value,
    inputs: Value,
    outputs: Value,
    columns: Value,
    skip: Value,
    per_part: Value,
    taps: int,
) -> None:
    """The weight gradient ``[inputs][outputs][taps]``. One work item is a part of the rows."""
    with code.scratch((Floats, outputs * columns)) as (turned,), code.loop(begin, end) as part:
        size = inputs * outputs * taps
        own = target + part * size
        own.clear(size)
        with code.loop(part * per_part, ((part + 1) * per_part).smaller(rows)) as row:
            _turn(code, gradient, turned, steps, rows, outputs, columns, skip, row)

            def spike(step: Value, input_: Value) -> None:
                first = input_ * outputs
                for k in _unrolled(code, outputs):
                    at = turned + (places[first + k].to(LONG) + step)
                    sum_ = own + (first + k) * taps
                    sum_.store(sum_.load(taps) + at.load(taps))

            _each_spike(code, bits, steps, rows, inputs, row, spike)


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
    steps: Value,
    rows: Value,
    inputs: Value,
    outputs: Value,
    columns: Value,
    skip: Value,
    taps: int,
) -> None:
    """The input gradient where `bits` are set. One work item is a row over all steps; `target` holds zeros
    before.
    """
    with code.scratch((Floats, outputs * columns)) as (turned,), code.loop(begin, end) as row:
        _turn(code, gradient, turned, steps, rows, outputs, columns, skip, row)

        def wanted(step: Value, input_: Value) -> None:
            first = input_ * outputs
            sums = code.variable(0.0, FLOAT.of(taps))
            for k in _unrolled(code, outputs):
                at = turned + (places[first + k].to(LONG) + step)
                sums.value += at.load(taps) * (table + (first + k) * taps).load(taps)
            found = sums.value if taps == 1 else sums.value.lane(0) + sums.value.lane(1)
            target[(step * rows + row) * inputs + input_] = found

        _each_spike(code, bits, steps, rows, inputs, row, wanted)


def _unrolled(code: Code, count: Value) -> Iterator[Value]:
    """Loops over the numbers below `count`, unrolled by UNROLLED, then one by one."""
    whole = count - count % UNROLLED
    with code.loop(0, whole, UNROLLED) as first:
        for offset in range(UNROLLED):
            yield first + offset
    with code.loop(whole, count) as rest:
        yield rest


def _each_spike(
    code: Code,
    bits: Longs,
    steps: Value,
    rows: Value,
    inputs: Value,
    row: Value,
    write: Callable[[Value, Value], None],
) -> None:
    """Calls `write` with step and input for each spike of a row."""
    words = words_of(inputs)
    with (
        code.loop(0, steps) as step,
        code.loop(0, words) as word,
        code.each_bit(bits[(step * rows + row) * words + word]) as bit,
    ):
        write(step, word * WORD + bit)


def _turn(
    code: Code,
    gradient: Floats,
    turned: Pointer,
    steps: Value,
    rows: Value,
    outputs: Value,
    columns: Value,
    skip: Value,
    row: Value,
) -> None:
    """Transposes a row's gradient to ``[outputs][columns]``, with zeros for steps without output."""
    turned.clear(outputs * columns)
    transposed(code, turned + skip, columns, gradient + row * outputs, rows * outputs, steps - skip, outputs)
