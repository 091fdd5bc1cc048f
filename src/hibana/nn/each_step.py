"""``hb.EachStep``: applies a module without time to all steps of a sequence, as one batch."""

from typing import cast

from torch import Tensor, nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.nn.over_steps import call_over_steps
from hibana.nn.running import check_knows_no_time

__all__ = ["EachStep"]


class EachStep(nn.Module):
    """`module`, whose input has no time, at each step of a sequence: ``[T, batch, ...] -> [T, batch, ...]``.

    The call joins time and batch, so that a convolution, a pooling or a batch normalization of ``torch.nn``
    gets the number of dimensions that it expects. An input that is constant over time (expanded, with a
    stride of zero) takes one call instead of T, in evaluation and, for linear layers, convolutions, pooling
    and batch normalization, in training. (T copies of a batch have the mean and variance of the batch; the
    running variance counts the samples of the batch, not those of its copies.)

    Raises:
        ValueError: if the input has fewer than three dimensions, or `module` contains a layer over time,
            which would read the joined time and batch as time.

    >>> import torch, hibana as hb
    >>> layer = hb.EachStep(torch.nn.Conv2d(1, 4, 3))
    >>> layer(torch.rand(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 6, 6])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        check_knows_no_time("module", module)
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of `module` for each step of `inputs`, ``[T, batch, ...]``."""
        if is_fx_proxy(inputs):
            return cast(Tensor, fx_leaf_call(self, inputs))
        if inputs.ndim < 3:
            raise ValueError(f"inputs must be [T, batch, ...], got shape {tuple(inputs.shape)}")
        module = self._modules["module"]  # not self.module, whose lookup takes longer
        assert module is not None
        try:
            return call_over_steps(module, module, inputs)
        except (RuntimeError, ValueError) as error:
            steps, batch = inputs.shape[:2]
            joined = [steps * batch, *inputs.shape[2:]]
            error.add_note(
                f"hibana.EachStep read its input {list(inputs.shape)} as {steps} steps of {batch} samples, "
                f"[T, batch, ...], and called {type(module).__name__} with {joined}"
            )
            raise
