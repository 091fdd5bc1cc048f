"""Commands about single neurons: ``demo``, ``explain`` and ``build``."""

from pathlib import Path
from typing import Any

from hibana.cli.common import Integer, Refusal, allow_local_imports, progress, refuse_errors


def demo(*, out: Path = Path("hibana-demo"), seed: Integer = 0) -> None:
    """Runs the article's two demos, prints them and draws them.

    Args:
        out: the folder of the pictures.
        seed: seed of the random input of demo 2.
    """
    with refuse_errors():
        out.mkdir(parents=True, exist_ok=True)
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
    from hibana.cells import Cell
    from hibana.cells.surrogate import named
    from hibana.cli.play.source import built_in
    from hibana.train.architecture import import_object

    with refuse_errors():
        options: dict[str, Any] = {} if surrogate is None else {"surrogate": named(surrogate)}
        if detach_reset:
            options["detach_reset"] = True
        allow_local_imports([cell])
        classes = {name.lower(): class_ for name, class_ in built_in().items()}
        kind = import_object(cell, "cell") if ":" in cell else classes.get(cell.removesuffix("Cell").lower())
        if not (isinstance(kind, type) and issubclass(kind, Cell)):
            names = ", ".join(built_in())
            raise Refusal(f"cell must be one of {names}, or MODULE:CLASS of your own; got {cell!r}")
        print(hibana.explain(kind(**options), code=code), end="")


def build() -> None:
    """Does nothing: compiled code needs no build step any more. The next release removes this command."""
    print(
        "hibana build is no longer needed: calls are as fast without a C++ part. Remove it from your scripts."
    )
