"""Integer networks as circuits: synthesizable Verilog, with a testbench that checks every spike."""

from hibana.network.verilog.program import VerilogProgram, to_verilog

__all__ = ["VerilogProgram", "to_verilog"]
