"""A batch of gradients (``is_grads_batched``, ``torch.vmap``) raises an error: kernels read one."""

import pytest
import torch

from every_layer import build


@pytest.mark.parametrize("name", ["IF", "Recurrent", "Linear above IF"])
@pytest.mark.parametrize("by_vmap", [False, True])
def test_a_batch_of_gradients_is_refused(name, by_vmap):
    layer, x = build(name)
    outputs = layer(x.requires_grad_())
    grads = torch.randn(3, *outputs.shape)

    def gradient(grad, batched=False):
        return torch.autograd.grad(outputs, x, grad, retain_graph=True, is_grads_batched=batched)[0]

    with pytest.raises(RuntimeError, match="one gradient at a time, got a batch"):
        torch.vmap(gradient)(grads) if by_vmap else gradient(grads, True)
