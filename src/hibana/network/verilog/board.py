"""Boards with an FPGA: the top level and constraints of a circuit, and its size, time and energy."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from tempfile import TemporaryDirectory

from hibana.network.verilog.program import VerilogProgram
from hibana.runtime import files

__all__ = ["BOARDS", "Board", "report", "write_top"]


@dataclass(frozen=True)
class Board:
    """A board with an FPGA and a serial port."""

    name: str
    clock: int
    """Frequency of the clock in Hz."""
    watts: float
    """The assumed power of the FPGA."""
    synthesis: str
    """The command of yosys."""
    place: tuple[str, ...]
    """nextpnr and its arguments."""
    constraints: str
    """The suffix of the file of constraints, and nextpnr's option for it, without the dot."""
    pins: str
    """The text of that file."""
    cells: tuple[str, str]
    """nextpnr's names of a logic cell and of a block RAM."""


BOARDS = {
    "ice40-up5k": Board(
        "iCEBreaker",
        12_000_000,
        0.005,
        "synth_ice40 -dsp",
        ("nextpnr-ice40", "--up5k", "--package", "sg48"),
        "pcf",
        "set_io clk 35\nset_io rx 6\nset_io tx 9\n",
        ("ICESTORM_LC", "ICESTORM_RAM"),
    ),
    "ecp5-85k": Board(
        "ULX3S 85F",
        25_000_000,
        0.5,
        "synth_ecp5",
        ("nextpnr-ecp5", "--85k", "--package", "CABGA381"),
        "lpf",
        "".join(
            f'LOCATE COMP "{port}" SITE "{site}";\nIOBUF PORT "{port}" IO_TYPE=LVCMOS33;\n'
            for port, site in (("clk", "G2"), ("rx", "M1"), ("tx", "L4"))
        )
        + 'FREQUENCY PORT "clk" 25 MHZ;\n',
        ("TRELLIS_COMB", "DP16KD"),
    ),
}
"""The boards by FPGA.

The power is an assumption: that of a few thousand cells at this clock, without the rest of the board. For
comparison, tinyvision.ai measured 1.2 mW for 208 cells of an iCE40UP5K at 12 MHz.
"""


def write_top(program: VerilogProgram, target: Path, board: Board) -> tuple[Path, Path]:
    """Writes the top level of the circuit in `target`, and the constraints of `board`, beside it.

    The module ``top`` connects the circuit to the serial port at 115,200 baud; the comment at its start
    describes the bytes. Returns the two files, ``*_top.v`` and ``*.pcf`` or ``*.lpf``.
    """
    top, constraints = target.with_name(f"{target.stem}_top.v"), target.with_suffix(f".{board.constraints}")
    text = (package_files("hibana.network.verilog") / "top.v").read_text(encoding="utf-8")
    text = text.replace("CLOCK = 12000000", f"CLOCK = {board.clock}")
    files.write(top, text.replace("INPUTS = 1", f"INPUTS = {program.inputs}").encode())
    files.write(constraints, board.pins.encode())
    return top, constraints


def report(program: VerilogProgram, board: Board) -> str:
    """Size, speed, time and energy of the circuit on `board`, from yosys, nextpnr and iverilog.

    Raises:
        FileNotFoundError: if one of these programs is not installed.
        ValueError: if the circuit does not fit on the FPGA or is too slow for the clock, with the end of the
            program's output.
    """
    tools = ("yosys", board.place[0], "iverilog")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise FileNotFoundError(
            f"--report needs {', '.join(missing)}; install with: apt install {' '.join(missing)}"
        )
    with TemporaryDirectory() as name:
        target, bench = program.write(Path(name) / "net.v")
        top, constraints = write_top(program, target, board)
        design, measured, simulator = (Path(name) / file for file in ("net.json", "report.json", "net"))
        no_latches = "proc; select -assert-none t:$dlatch t:$adlatch t:$dlatchsr"
        merge = (
            "memory_collect; memory_unpack"  # the cells of single words of constants, which slow yosys down
        )
        synthesis = f"{board.synthesis} -top top -json {design}"
        _run("yosys", "-q", "-p", f"read_verilog {target} {top}; {no_latches}; {merge}; {synthesis}")
        pins = f"--{board.constraints}", constraints
        _run(*board.place, "-q", "--json", design, *pins, "--freq", board.clock / 1e6, "--report", measured)
        _run("iverilog", "-g2005", "-o", simulator, target, bench)
        simulated = _run(simulator)
        result = json.loads(measured.read_text(encoding="utf-8"))
    megahertz = min(clock["achieved"] for clock in result["fmax"].values())
    cells, memories = (result["utilization"][kind] for kind in board.cells)
    (cycles,) = re.findall(r"(\d+) cycles per step", simulated)
    (equal,) = re.findall(r"\d+ of \d+ equal", simulated)
    microseconds = int(cycles) * program.steps * 1e6 / board.clock
    energy, power = board.watts * microseconds, board.watts * 1e3
    return "\n".join(
        [
            f"{board.name}: {cells['used']:,} of {cells['available']:,} cells, {memories['used']} of "
            f"{memories['available']} block RAMs, no latches",
            f"at most {megahertz:.1f} MHz; the board's clock has {board.clock / 1e6:g} MHz",
            f"{int(cycles):,} cycles per step; samples in the simulator: {equal} to PyTorch",
            f"{microseconds:,.0f} µs for the {program.steps} steps of a sample; "
            f"{energy:,.1f} µJ if the FPGA takes {power:g} mW, an assumption",
        ]
    )


def _run(*command: object) -> str:
    """The output of a program; raises ValueError with the end of its messages if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{command[0]} fails: {(done.stderr or done.stdout)[-800:]}")
    return done.stdout
