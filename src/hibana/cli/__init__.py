"""The command line: ``hibana COMMAND``.

A command is one function: its name is the command's, its docstring the help, its parameters the options.
Those of ``train`` are the settings themselves, :class:`hibana.train.Settings`. This module parses, calls and
says what went wrong, in a sentence; it computes nothing, and imports what is heavy with the commands.
"""

import difflib
import errno
import itertools
import os
import re
import sys
from collections.abc import Sequence

import cyclopts
from cyclopts.exceptions import CycloptsError, UnknownOptionError, UnusedCliTokensError

from hibana import __version__
from hibana.cells import peer_aliases as foreign
from hibana.cli.common import Failure, Refusal
from hibana.runtime import extras

__all__ = ["Failure", "Refusal", "main"]

_COMMANDS = {
    "build": (
        "cell_commands",
        "Does nothing: compiled code needs no build step any more. Removed in the next release.",
    ),
    "convert": (
        "network_commands",
        "Converts a network to NIR, C, ONNX, a web page or a PyTorch program, or from NIR.",
    ),
    "demo": ("cell_commands", "Runs the article's two demos, prints them and draws them."),
    "explain": ("cell_commands", "Prints a cell's equations, the kernels it is compiled to, and why."),
    "play": (
        "network_commands",
        "Opens a page in the browser to change a neuron or watch a trained network.",
    ),
    "predict": ("network_commands", "Classifies samples, the test set or a stream with a trained network."),
    "runs": ("train_commands", "Lists the runs in a folder with their data, results and settings."),
    "share": ("sharing", "Writes a trained network to a folder for other people, with a model card."),
    "train": ("train_commands", "Trains a spiking network and compares it with a linear model."),
}
"""Each command, the module that it lies in, and what it does."""

_APP = cyclopts.App(
    name="hibana",
    help="Integrate-and-fire spiking networks for PyTorch.",
    version=__version__,
    help_format="plaintext",
    default_parameter=cyclopts.Parameter(negative_iterable=(), negative_none=()),
)
for _name, (_module, _help) in _COMMANDS.items():
    _APP.command(f"hibana.cli.{_module}:{_name}", name=_name, help=_help)
_APP.register_install_completion_command()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    That is 0; 1 where it could not finish, 2 where it refused to begin, 130 where it was interrupted.
    """
    tokens = [str(each) for each in (sys.argv[1:] if arguments is None else arguments)]
    name = f"hibana {tokens[0]}" if tokens and tokens[0] in _COMMANDS else "hibana"
    try:
        _check_command(tokens)
        run, bound, _ = _APP.parse_args(tokens, exit_on_error=False, print_error=False)
        run(*bound.args, **bound.kwargs)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except CycloptsError as error:
        return _print_error(name, _sentence(error), 2)
    except Refusal as refusal:
        return _print_error(name, str(refusal), 2)
    except Failure as failure:
        return _print_error(name, str(failure), 1)
    except ImportError as error:
        message = extras.missing_module_message(error)
        if message is None:
            raise
        return _print_error(name, message, 2)
    except KeyboardInterrupt as interruption:
        return _print_error(name, f"interrupted{interruption}", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard_output()
        return _print_error(name, f"output can't be written: {error.strerror}", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        return _print_error(
            name, "needs more memory than there is; fewer layers or a smaller batch_size need less", 1
        )
    return 0


def _discard_output() -> None:
    """Redirects standard output to nothing, so that Python does not fail again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_command(tokens: list[str]) -> None:
    if not tokens:
        raise Refusal(f"needs a command, one of {', '.join(_COMMANDS)}; hibana --help says what they do")
    if tokens[0] not in _COMMANDS and not tokens[0].startswith("-"):
        near = difflib.get_close_matches(tokens[0], _COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(_COMMANDS)}"
        raise Refusal(f"there is no command {tokens[0]!r}{hint}")
    for option, value in itertools.pairwise(tokens):
        if not value or (value.startswith("--") and value.endswith("=")):
            named = (value[:-1] if value else option).split("=")[0]
            raise Refusal(f"{named if named.startswith('--') else 'an argument'} must not be empty")


def _print_error(name: str, sentence: str, status: int) -> int:
    print(f"{name}: {sentence}", file=sys.stderr)
    return status


def _sentence(error: CycloptsError) -> str:
    """The message of a wrong option, with the closest one, also by its name in other libraries."""
    if isinstance(error, UnknownOptionError):
        option = error.token.keyword or error.token.value
        name = option.partition("=")[0].lstrip("-").replace("_", "-")
        arguments = error.argument_collection or ()
        options = [each for argument in arguments for each in argument.names if each.startswith("--")]
        alias = f"--{foreign.OPTIONS.get(name)}"
        near = [alias] if alias in options else difflib.get_close_matches(f"--{name}", options, 1)
        hint = f"did you mean {near[0]}?" if near else "--help lists them all"
        return f"there is no option {option}; {hint}"
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or ())} belongs to no option; --help lists them all"
    return " ".join(str(error).split())
