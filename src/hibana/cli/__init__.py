"""The command line: ``hibana COMMAND``.

Each command is one function: the function's docstring is the command's help, its parameters are the options.
The options of ``train`` are the fields of :class:`hibana.train.Settings`. This module parses arguments, calls
the function, and prints errors as one sentence. Slow imports are in the modules of the commands.
"""

import os
import sys
from collections.abc import Sequence

import cyclopts
from cyclopts.exceptions import CycloptsError, UnknownOptionError, UnusedCliTokensError

from hibana.cells import peer_aliases
from hibana.cli.common import Failure, Refusal
from hibana.runtime import extras
from hibana.version import __version__

__all__ = ["Failure", "Refusal", "main"]

_COMMANDS = {
    "convert": ("convert", "Converts to C, Arduino, Verilog, ONNX, a page, PyTorch or NIR, and from NIR."),
    "demo": ("cell_commands", "Runs the article's two demos, prints them and draws them."),
    "explain": ("cell_commands", "Prints a cell's equations, the kernels it is compiled to, and why."),
    "play": ("network_commands", "Opens a page in the browser to change a neuron or watch a network."),
    "predict": ("network_commands", "Classifies samples, the test set or a stream with a trained network."),
    "runs": ("train_commands", "Lists the runs in a folder with their data, results and settings."),
    "share": ("network_commands", "Writes a trained network to a folder for others, with a model card."),
    "simulate": ("simulate", "Simulates a wiring diagram, some of whose neurons are driven."),
    "train": ("train_commands", "Trains a spiking network and compares it with a linear model."),
}
"""For each command, the module that defines it, and its line in ``hibana --help``."""

_APP = cyclopts.App(
    name="hibana",
    help="Integrate-and-fire spiking networks for PyTorch.",
    version=__version__,
    help_format="plaintext",
    default_parameter=cyclopts.Parameter(negative_iterable=(), negative_none=()),
)
for _name, (_module, _help) in _COMMANDS.items():
    _APP.command(f"hibana.cli.{_module}:{_name}", name=_name, help=_help)
_APP.command("hibana.cli.cell_commands:build", name="build", show=False)  # scripts may call it
_APP.register_install_completion_command()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command in `arguments`, by default those of the process; returns the exit status.

    The status is 0 for success, 1 if the command could not finish, 2 if it did not start, and 130 if the user
    interrupted it.
    """
    tokens = [str(token) for token in (sys.argv[1:] if arguments is None else arguments)]
    name = f"hibana {tokens[0]}" if tokens and tokens[0] in _COMMANDS else "hibana"
    if not tokens:
        names = ", ".join(_COMMANDS)
        return _print_error(name, f"needs a command, one of {names}; hibana --help describes them", 2)
    try:
        command, bound, _ = _APP.parse_args(tokens, exit_on_error=False, print_error=False)
        command(*bound.args, **bound.kwargs)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # discards the output, so that Python's flush at exit does not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CycloptsError as error:
        return _print_error(name, _sentence(error), 2)
    except (Refusal, Failure) as stop:
        return _print_error(name, str(stop), 2 if isinstance(stop, Refusal) else 1)
    except ImportError as error:
        message = extras.missing_module_message(error)
        if message is None:
            raise
        return _print_error(name, message, 2)
    except KeyboardInterrupt as interruption:
        return _print_error(name, f"interrupted{interruption}", 130)
    return 0


def _print_error(name: str, sentence: str, status: int) -> int:
    """Prints `sentence` to standard error after the command's `name`; returns `status`."""
    print(f"{name}: {sentence}", file=sys.stderr)
    return status


def _sentence(error: CycloptsError) -> str:
    """Returns a parser's error as a sentence; suggests the option that has the name in another library."""
    if isinstance(error, UnknownOptionError):
        name = (error.token.keyword or error.token.value).partition("=")[0].lstrip("-").replace("_", "-")
        option = f"--{peer_aliases.OPTIONS.get(name)}"
        if any(option in argument.names for argument in error.argument_collection or ()):
            return f"Unknown option: --{name}. Did you mean {option}?"
    if isinstance(error, UnusedCliTokensError):
        hint = "data are passed by --data, and " if list(error.command_chain or ()) == ["train"] else ""
        return f"{' '.join(error.unused_tokens or ())} belongs to no option; {hint}--help lists all options"
    return " ".join(str(error).split())
