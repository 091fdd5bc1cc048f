"""Batch normalisation folded into the layer before it: for inference, where it is a scale and a shift."""

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["fold_batchnorm"]

Normalised = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def fold_batchnorm(traced: fx.GraphModule) -> fx.GraphModule:
    """A copy of a traced network, in evaluation, without batch normalisation.

        y = (x - mean) / sqrt(variance + eps) * weight + bias,   x = W z + b

    is one layer with the weight ``W * weight / sqrt(variance + eps)``. Where no linear layer or convolution
    stands before it, a two-dimensional one becomes a convolution of each channel with one weight.

    Raises:
        ValueError: naming the layer, if it keeps no running statistics, or stands where it can't be folded.

    Source: Ioffe & Szegedy (2015), *Batch normalization*, algorithm 2.
    """
    folded = copy.deepcopy(traced).eval()
    for node in list(folded.graph.nodes):
        module = folded.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, Normalised):
            continue
        if module.running_mean is None or module.running_var is None:
            raise ValueError(f"layer {node.target}: batch normalisation without running statistics")
        before = node.args[0]
        inner = _sole_layer(folded, before)
        if inner is not None:
            fused = _fused(inner, module)
            folded.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            folded.graph.erase_node(node)
        elif isinstance(module, nn.BatchNorm2d):
            folded.set_submodule(str(node.target), fuse_conv_bn_eval(_each_channel(module), module))
        else:
            raise ValueError(f"layer {node.target}: no linear layer or convolution before it to fold it into")
    folded.recompile()
    return folded


def _fused(inner: Convolution | nn.Linear, module: Normalised) -> nn.Module:
    if isinstance(inner, nn.Linear):
        return fuse_linear_bn_eval(inner, module)
    return fuse_conv_bn_eval(inner, module)


def _sole_layer(folded: fx.GraphModule, node: fx.Node) -> Convolution | nn.Linear | None:
    """The linear layer or convolution that `node` calls, if nothing else uses it or its result."""
    if node.op != "call_module" or len(node.users) != 1:
        return None
    if sum(other.target == node.target for other in folded.graph.nodes if other.op == "call_module") != 1:
        return None
    module = folded.get_submodule(str(node.target))
    return module if isinstance(module, Convolution | nn.Linear) else None


def _each_channel(module: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that changes nothing."""
    channels = module.num_features
    layer = nn.Conv2d(channels, channels, 1, groups=channels).to(module.running_mean)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()  # type: ignore[union-attr]  # made with a bias
    return layer.eval()
