"""``hb.EachStep``: applies a module without time to all steps of a sequence, as one batch."""

from typing import cast

from torch import Tensor, nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.memory_layout import expand_over_time
from hibana.compiler.torch_layers import is_user_class, role_of
from hibana.nn.running import Stateful, check_knows_no_time
from hibana.spikes.checks import is_constant_over_time
from hibana.spikes.provenance import register_view

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
        if self.module._modules or isinstance(self.module, Stateful):
            check_knows_no_time("module", self.module)  # layers may have been added
        steps, batch = inputs.shape[:2]
        if self.runs_once(inputs):
            once: Tensor = self.module(inputs[0])
            return expand_over_time(once, steps)
        try:
            outputs: Tensor = self.module(register_view(inputs, inputs.flatten(0, 1)))
        except (RuntimeError, ValueError) as error:
            joined = [steps * batch, *inputs.shape[2:]]
            error.add_note(
                f"hibana.EachStep read its input {list(inputs.shape)} as {steps} steps of {batch} samples, "
                f"[T, batch, ...], and called {type(self.module).__name__} with {joined}"
            )
            raise
        return register_view(outputs, outputs.reshape(steps, batch, *outputs.shape[1:]))

    def runs_once(self, inputs: Tensor) -> bool:
        """Whether one call computes all steps of `inputs`, ``[T, batch, ...]``, because they are the same."""
        batch = inputs.shape[1]
        return is_constant_over_time(inputs) and (not self.training or _may_run_once(self.module, batch))


def _may_run_once(module: nn.Module, batch: int) -> bool:
    """Whether `module`, in training, has the same outputs for a batch with and without copies of it."""
    return all(not is_user_class(layer) and _ignores_copies(layer, batch) for layer in module.modules())


def _ignores_copies(layer: nn.Module, batch: int) -> bool:
    """Whether copies of a batch do not change the outputs of `layer` for it, in training.

    A batch normalization refuses a single sample, but accepts copies of it.
    """
    role = role_of(layer)
    return role in _OF_ONE_SAMPLE or (role == "batch normalization" and batch > 1)


_OF_ONE_SAMPLE = ("linear", "convolution", "maximum", "average", "reshape", "sequence")
"""Roles of layers whose output for a sample depends on that sample alone, also in training."""
