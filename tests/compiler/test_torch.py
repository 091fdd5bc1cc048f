"""What hibana takes of torch that torch does not document, so that it may move in any release."""

import functools
import re
from pathlib import Path

import pytest
import torch
import torch._higher_order_ops.scan
import torch._subclasses.fake_tensor

import hibana as hb

SOURCE = Path(hb.__file__).parent

PRIVATE = {
    "torch._C._InferenceMode": "tensors that are made within inference mode and are not of it",
    "torch._C._are_functorch_transforms_active": "whether a transform of torch.func is active",
    "torch._C._functorch.peek_interpreter_stack": "the same, at less cost",
    "torch._C._functorch.get_interpreter_stack": "every transform of torch.func that is active",
    "torch._C._functorch.TransformType.Vmap": "that one of them is torch.vmap",
    "torch._C._functorch.is_batchedtensor": "whether a tensor is a batch of torch.vmap",
    "torch._C._functorch.is_legacy_batchedtensor": "whether a gradient is a batch of is_grads_batched",
    "torch._C._vmapmode_decrement_nesting": "with the next, how deep batches of gradients are nested",
    "torch._C._vmapmode_increment_nesting": "with the one before, the same",
    "torch._add_batch_dim": "a batch of gradients made of its parts",
    "torch._remove_batch_dim": "the parts of a batch of gradients",
    "torch._C._autograd._top_saved_tensors_default_hooks": "the innermost hooks on saved tensors",
    "torch._C._current_graph_task_id": "which backward runs now",
    "torch._C._functions.DelayedError": "a node of autograd that raises in the backward",
    "torch._C._get_tracing_state": "whether torch.jit.trace records",
    "torch._C._len_torch_dispatch_stack": "whether a TorchDispatchMode is active",
    "torch._C._will_engine_execute_node": "whether the backward that runs now goes on to a node",
    "torch._C.DisableTorchFunction": "attributes of a tensor subclass read without its __torch_function__",
    "torch._higher_order_ops.scan": "a loop in an exported graph",
    "torch._ops": "the module that operators are of",
    "torch._ops.OpOverload": "the type of the operators in a graph",
    "torch._ops._OpNamespace": "the type of torch.ops.aten",
    "torch._subclasses.fake_tensor": "whether a tensor is fake",
    "torch.autograd.forward_ad._current_level": "whether forward-mode derivatives are asked for",
    "torch.nn.modules.module._has_any_global_hook": "whether every module has a hook",
    "torch.utils._python_dispatch": "the operators that a call runs",
    "torch.utils._pytree": "the tensors within the arguments of an operator",
}
"""What each tells. Where torch documents a function for it, that is taken instead."""

USED = re.compile(r"\b(?:torch(?:\.[a-z]\w*)*|forward_ad)\._(?!_)\w+(?:\.\w+)*")
ELSEWHERE = ("torch.ops.", "torch._dynamo", "torch._utils")
"""Operators, whose names are saved in graphs; what is looked for in sys.modules; what is read of a pickle."""


def test_each_private_name_of_torchs_is_listed():
    used = {name for path in SOURCE.rglob("*.py") for name in USED.findall(path.read_text())}
    listed = {name for name in used for one in PRIVATE if name.startswith(one) or one.endswith(f".{name}")}
    unlisted = {name for name in used - listed if not name.startswith(ELSEWHERE)}
    assert not unlisted, "take what torch documents, or list what the name tells"


@pytest.mark.parametrize("name", PRIVATE)
def test_this_release_of_torch_has_each_private_name(name):
    try:
        functools.reduce(getattr, name.split(".")[1:], torch)
    except AttributeError:
        raise AssertionError(
            f"torch {torch.__version__} has no {name}, which tells: {PRIVATE[name]}. Find what tells it now, "
            "take it where hasattr finds it, and the old name where that is still there"
        ) from None
