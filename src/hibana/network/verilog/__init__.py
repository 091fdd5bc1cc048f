"""Integer networks as circuits: synthesizable Verilog, with a testbench that checks every spike."""

from hibana.runtime.extras import explain_import_error

with explain_import_error("hibana.convert.to_verilog"):
    from hibana.network.verilog.program import VerilogProgram, to_verilog

__all__ = ["VerilogProgram", "to_verilog"]
