"""What stands before and after a loop, computed by PyTorch's operations one after the other."""

import pytest
import torch

from hibana.compiler.graph.part import SUM, Part, Place

SUMMED = [
    (torch.tensor([[-0.0, 2.0, torch.inf]]).view(1, 3, 1, 1), [0, 2, 3]),
    (torch.full((1, 1), torch.nan), [0, 1]),
    (torch.tensor([[3.0], [-3.0]]), [0]),
    (torch.tensor([[3.0, 4.0]]), []),  # which is all dimensions
    (torch.tensor([[True, False]]), [0]),  # which are counted
    (torch.tensor([[7, -1]]), [-2]),
    (torch.tensor(-0.0), [0]),
]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("case", range(len(SUMMED)))
def test_a_sum_is_torchs_to_the_bit_whether_anything_is_summed_or_not(case, keep):
    values, dimensions = SUMMED[case]
    part = Part(1, [(SUM, (Place(0), dimensions, keep), {})], [1])
    (got,) = part(values)
    wanted = SUM(values, dimensions, keep)
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
    assert torch.equal(got.signbit(), wanted.signbit())
    assert got is not values
