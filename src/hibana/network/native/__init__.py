"""A network in evaluation as one native function, over whole sequences or step by step."""

from hibana.network.native.program import Program, Stream, compile  # noqa: A004 - as torch.compile

__all__ = ["Program", "Stream", "compile"]
