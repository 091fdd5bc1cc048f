"""Support of ``torch.utils.checkpoint``, which calls its function again in the backward.

Here the checkpoints that a call is within are found on the stack, and their function is replaced by one that
begins at the states of the first call.
"""

import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, GeneratorType
from typing import Any, NamedTuple

import torch

from hibana.compiler.ambient import saved_tensor_hooks


class Checkpoint(NamedTuple):
    """A checkpoint whose function runs now."""

    handle: Any
    """What torch keeps of it for the backward."""
    name: str
    """Which attribute of `handle` is the function that the backward calls."""
    reentrant: bool

    def replace(self, by: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Makes the function that the backward calls `by` of it."""
        setattr(self.handle, self.name, by(getattr(self.handle, self.name)))


def around(end: frozenset[CodeType]) -> list[Checkpoint]:
    """The checkpoints that this call is within, the innermost first, up to a function whose code is in `end`.

    Raises:
        RuntimeError: if this version of torch implements checkpoints in an unknown way.
    """
    module = sys.modules.get("torch.utils.checkpoint")
    if module is None:
        return []
    found = list(_of_hooks())
    reentrant = module.CheckpointFunction.forward.__code__
    frame: FrameType | None = sys._getframe(1)
    entered = False  # a checkpoint is found, whose call by ``checkpoint`` is further out
    ends = [id(code) for code in end]  # the hash of a code object is that of all that it holds
    file = module.__file__
    while frame is not None and id(code := frame.f_code) not in ends:
        if code is reentrant:
            found.append(_checked(Checkpoint(frame.f_locals.get("ctx"), "run_function", True)))
            entered = True
        elif code.co_filename == file:
            suspended = _suspended(frame.f_locals.values(), file)
            if suspended is not None:
                entered = True
                if torch.is_grad_enabled():
                    handle = _handle(suspended.f_locals.values())
                    found.append(_checked(Checkpoint(handle, "recompute_fn", False)))
            if code.co_name == "checkpoint":  # torch's public function, the outermost of its frames
                if not entered:
                    raise RuntimeError(_UNKNOWN)
                entered = False
        frame = frame.f_back
    return found


def _of_hooks() -> list[Checkpoint]:
    """The checkpoint of the innermost hooks of autograd: those of ``torch.distributed`` are on no stack."""
    hooks = saved_tensor_hooks()
    pack: Any = None if hooks is None else hooks[0]
    if not getattr(pack, "__qualname__", "").startswith("_checkpoint_hook."):
        return []
    handle = _handle(cell.cell_contents for cell in pack.__closure__ or ())
    return [_checked(Checkpoint(handle, "recompute_fn", False))]


def _suspended(values: Iterable[Any], file: str) -> FrameType | None:
    """The frame of the generator among `values` whose code is in `file`: a non-reentrant checkpoint."""
    generators = (value for value in values if isinstance(value, GeneratorType))
    return next((found.gi_frame for found in generators if found.gi_code.co_filename == file), None)


def _handle(values: Iterable[Any]) -> Any:
    """Torch's object of a non-reentrant checkpoint, which has a `recompute_fn`."""
    own = (value for value in values if type(value).__module__ == "torch.utils.checkpoint")
    return next((value for value in own if hasattr(value, "recompute_fn")), None)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    if getattr(checkpoint.handle, checkpoint.name, None) is None:
        raise RuntimeError(_UNKNOWN)
    return checkpoint


_UNKNOWN = (
    f"hibana.run does not know how torch {torch.__version__} calls a checkpoint's function again, which must "
    "begin at the states of the first call; call hibana.run within the checkpointed function instead"
)
