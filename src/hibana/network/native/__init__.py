"""A network in evaluation as one native function, over whole sequences or step by step."""

from hibana.network.native.program import Program, compile  # noqa: A004 - as torch.compile
from hibana.network.native.stream import Stream

__all__ = ["Program", "Stream", "compile"]
