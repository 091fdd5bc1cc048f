"""Commands to look at neurons with: ``demo``, ``explain``, ``build``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibana.cli.common import Integer, Refusal, doing, reachable, refusing, writable

if TYPE_CHECKING:
    from hibana.cells import Cell


def demo(*, out: Path = Path("hibana-demo"), seed: Integer = 0) -> None:
    """The article's two demos, printed and drawn.

    Args:
        out: the folder where pictures go.
        seed: of the input of demo 2.
    """
    folder = writable(out)
    if not 0 <= seed < 2**32:
        raise Refusal(f"seed must be in [0, 2^32), got {seed}")
    with doing("loading Matplotlib"):
        import torch

        from hibana import plot
        from hibana.cells import surrogate as surrogates
        from hibana.cli import demo

    torch.manual_seed(seed)
    print("Demo 1: forty neurons at one moment\n")
    now = demo.one_step()
    one = plot.current_step(now.potentials, now.spikes, now.gradient, now.threshold)

    print("\nDemo 2: one neuron over time\n")
    then = demo.over_time(timesteps=100)
    times = then.spikes.nonzero().flatten().tolist()
    print(f"{len(then.spikes)} steps, {len(times)} spikes, at {', '.join(map(str, times))}")
    two = plot.membrane(then.potentials, then.spikes, then.threshold)
    two.set_title("Simulation of IF model")

    step = plot.surrogate(surrogates.Step(), torch.linspace(-1, 1, 401, dtype=torch.float32, device="cpu"))
    print("\nPictures")
    figures: dict[str, Any] = {"heaviside": step[0].figure, "demo1": one[0].figure, "demo2": two.figure}
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path)
        print(f"  {path}")


def explain(
    cell: str, /, *, surrogate: str | None = None, detach_reset: bool = False, code: bool = False
) -> None:
    """What a cell is compiled to: its equations, the backend and why, what is kept; with --code the code.

    Args:
        cell: a cell of hibana (IF, LIF, ...) or MODULE:CLASS of your own.
        surrogate: what to call the derivative of the step; the cell's own if none is named.
        detach_reset: stop the gradient at the reset.
        code: the generated code too.
    """
    import hibana
    from hibana.cells.surrogate import named

    with refusing():
        options: dict[str, Any] = {} if surrogate is None else {"surrogate": named(surrogate)}
        if detach_reset:
            options["detach_reset"] = True
        print(hibana.explain(_cell(cell)(**options), code=code), end="")


def build() -> None:
    """Not needed any more: nothing is left to build. The command is removed in the next release."""
    print(
        "hibana build is no longer needed: calls are as fast without a C++ part. Remove it from your scripts."
    )


def _cell(name: str) -> "type[Cell]":
    """The class of the cell called `name`, with or without its ending, or at ``module:class``."""
    from hibana import cells
    from hibana.train.architecture import imported

    names = [each.removesuffix("Cell") for each in cells.__all__ if each.endswith("Cell") and each != "Cell"]
    by_name = {each.lower(): getattr(cells, f"{each}Cell") for each in names}
    reachable([name])
    cell = imported(name, "cell") if ":" in name else by_name.get(name.removesuffix("Cell").lower())
    if not (isinstance(cell, type) and issubclass(cell, cells.Cell)):
        raise Refusal(f"cell must be one of {', '.join(names)}, or MODULE:CLASS of your own; got {name!r}")
    return cell
