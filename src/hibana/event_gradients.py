"""Products of gradients with spikes for the compiler, which lies below the package of these products.

Importing this module sets the two hooks of :mod:`hibana.compiler.named_kernels`. The first call imports their
kernels.
"""

from torch import Tensor

from hibana.compiler import named_kernels


def bit_product(rows: Tensor, words: Tensor) -> Tensor:
    """``rows^T B`` for packed bits `words`."""
    from hibana.spikes.linear import product

    return product.product_with_bits(rows, words)


def synapse_sums(row_starts: Tensor, targets: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """For each synapse the sum of ``x[:, source] rows[:, target]``; `x` are numbers, or words of bits."""
    from hibana.runtime.synapses import SynapseIndex
    from hibana.spikes.bits import Planes
    from hibana.spikes.sparse import product

    neurons = rows.shape[1]
    index = SynapseIndex.check(row_starts, targets, None, neurons, neurons)
    if x.dtype == rows.dtype:
        return product.sums_per_synapse(index, x, rows)
    sums = product.SparseProduct(rows.shape, index)
    return sums.weight_gradient(Planes(x[None], 1.0), sums.gradient_rows(rows))


named_kernels.bit_product = bit_product
named_kernels.synapse_sums = synapse_sums
