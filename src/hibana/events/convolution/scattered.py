"""Spikes that arrive later, each synapse at its own time: one addition for each spike and synapse."""

import torch
from torch import Tensor

from hibana.events.lanes.lists import WORD
from hibana.native import LONG, Code, Floats, Ints, Longs, Value, kernel

__all__ = ["scattered"]


def scattered(
    bits: Tensor, weight: Tensor, lags: Tensor, bias: Tensor | None, steps: int, skip: int
) -> Tensor:
    """``y_t,o = bias_o + sum_i W_oi s_(t + skip - lag_oi),i``, ``[steps - skip, rows, outputs]``.

    Args:
        bits: of spikes ``[steps * rows, inputs]``, a word for each 64.
        weight: ``[outputs, inputs]``.
        lags: in steps, whole numbers of the same shape.
        bias: ``[outputs]``.
        steps: of the spikes.
        skip: the first steps, for which nothing comes out.
    """
    outputs, inputs = weight.shape
    rows, columns = bits.shape[0] // steps, steps + int(lags.max())
    places = (
        torch.arange(outputs, dtype=torch.int64, device="cpu")[:, None] * columns + lags
    )  # [outputs, inputs]
    out = torch.empty(steps - skip, rows, outputs, dtype=torch.float32, device="cpu")
    given = {"bits": bits, "places": places.T.to(torch.int32).contiguous(), "table": weight.T.contiguous()}
    sizes = {"steps": steps, "rows": rows, "inputs": inputs, "outputs": outputs, "columns": columns}
    _scatter(rows, **given, bias=bias, target=out, **sizes, skip=skip)
    return out


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
) -> None:
    """One piece of work is a row of all steps, whose outputs are gathered as ``[outputs][columns]``."""
    words = (inputs + (WORD - 1)) // WORD
    with code.scratch((Floats, outputs * columns)) as (sums,), code.loop(begin, end) as row:
        sums.clear(outputs * columns)
        with code.loop(0, steps) as step, code.loop(0, words) as word:
            left = code.variable(bits[(step * rows + row) * words + word])
            with code.when(left.value.differs(0)), code.repeat() as again:
                first = (word * WORD + left.value.lowest()) * outputs
                with code.loop(0, outputs) as k:
                    at = places[first + k].to(LONG) + step
                    sums[at] = sums[at] + table[first + k]
                left.value &= left.value - 1
                again(left.value.differs(0))
        with code.loop(skip, steps) as step:
            out = target + ((step - skip) * rows + row) * outputs
            with code.loop(0, outputs) as k:
                out[k] = sums[k * columns + step]
            with code.when(bias.given()), code.loop(0, outputs) as k:
                out[k] = out[k] + bias[k]
