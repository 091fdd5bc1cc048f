"""Commands about single neurons: ``demo``, ``explain`` and ``build``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibana.cli.common import Integer, Refusal, allow_local_imports, progress, refuse_errors, unwritable

if TYPE_CHECKING:
    from hibana.cells import Cell


def demo(*, out: Path = Path("hibana-demo"), seed: Integer = 0) -> None:
    """Runs the article's two demos, prints them and draws them.

    Args:
        out: the folder of the pictures.
        seed: seed of the random input of demo 2.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    if not 0 <= seed < 2**32:
        raise Refusal(f"seed must be in [0, 2^32), got {seed}")
    with progress("loading Matplotlib"):
        import torch

        from hibana import plot
        from hibana.cells import surrogate as surrogates
        from hibana.cli import demo

    torch.manual_seed(seed)
    print("Demo 1: forty neurons at one moment\n")
    first = demo.one_step()
    step_axes = plot.current_step(first.potentials, first.spikes, first.gradient, first.threshold)

    print("\nDemo 2: one neuron over time\n")
    second = demo.over_time(timesteps=100)
    times = second.spikes.nonzero().flatten().tolist()
    print(f"{len(second.spikes)} steps, {len(times)} spikes, at {', '.join(map(str, times))}")
    membrane_axes = plot.membrane(second.potentials, second.spikes, second.threshold)
    membrane_axes.set_title("Simulation of IF model")

    x = torch.linspace(-1, 1, 401, dtype=torch.float32, device="cpu")
    surrogate_axes = plot.surrogate(surrogates.Step(), x)
    print("\nPictures")
    axes: dict[str, Any] = {"heaviside": surrogate_axes[0], "demo1": step_axes[0], "demo2": membrane_axes}
    for name in axes:
        path = out / f"{name}.png"
        axes[name].figure.savefig(path)
        print(f"  {path}")


def explain(
    cell: str, /, *, surrogate: str | None = None, detach_reset: bool = False, code: bool = False
) -> None:
    """Prints a cell's equations, the backend that runs it and why, and the tensors stored for the gradient.

    Args:
        cell: name of a cell of hibana (IF, LIF, ...), or your own as MODULE:CLASS.
        surrogate: name of the surrogate derivative; by default that of the cell.
        detach_reset: stop the gradient at the reset.
        code: also print the generated code.
    """
    import hibana
    from hibana.cells.surrogate import named

    with refuse_errors():
        options: dict[str, Any] = {} if surrogate is None else {"surrogate": named(surrogate)}
        if detach_reset:
            options["detach_reset"] = True
        print(hibana.explain(_cell_class(cell)(**options), code=code), end="")


def build() -> None:
    """Does nothing: compiled code needs no build step any more. The next release removes this command."""
    print(
        "hibana build is no longer needed: calls are as fast without a C++ part. Remove it from your scripts."
    )


def _cell_class(name: str) -> "type[Cell]":
    """Returns the cell class called `name`, such as ``LIF`` or ``LIFCell``, or at ``module:class``."""
    from hibana.cells import Cell
    from hibana.cli.play.source import built_in
    from hibana.train.architecture import import_object

    classes = {class_name.lower(): class_ for class_name, class_ in built_in().items()}
    allow_local_imports([name])
    cell = import_object(name, "cell") if ":" in name else classes.get(name.removesuffix("Cell").lower())
    if not (isinstance(cell, type) and issubclass(cell, Cell)):
        raise Refusal(
            f"cell must be one of {', '.join(built_in())}, or MODULE:CLASS of your own; got {name!r}"
        )
    return cell
