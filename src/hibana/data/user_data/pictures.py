"""Pictures in folders by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.folders import labelled_files
from hibana.data.user_data.samples import RawSamples, reading, span

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
SIDE = 32
"""Pixels of the longer side of resized pictures."""


@dataclass(frozen=True)
class ImageInputs(Inputs):
    """Pictures of one size: grey ``[height, width]`` or colour ``[3, height, width]``, in [0, 1]."""

    height: int
    width: int
    colour: bool

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a property instead of a field
        """The shape of one picture."""
        return (3, self.height, self.width) if self.colour else (self.height, self.width)

    def tensor(self, values: Sequence[Path]) -> Tensor:
        """The pictures as bytes, ``[N, *shape]``."""
        return torch.from_numpy(np.stack([self._pixels(path) for path in values]))

    def _pixels(self, path: Path) -> "np.ndarray[Any, Any]":
        """The bytes of a picture, with this object's shape; transparent parts are white."""
        import PIL.Image

        with _open(path) as picture:
            if picture.mode.startswith("I"):  # 16 bits
                picture = PIL.Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
            if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
                white = PIL.Image.new("RGBA", picture.size, "white")
                picture = PIL.Image.alpha_composite(white, picture.convert("RGBA"))
            picture = picture.convert("RGB" if self.colour else "L")
            if picture.size != (self.width, self.height):
                picture = picture.resize((self.width, self.height), PIL.Image.Resampling.BILINEAR)
            pixels = np.array(picture)
        return pixels.transpose(2, 0, 1) if self.colour else pixels

    def difference_from_training(self, values: Sequence[Path]) -> str:
        """A clause on the first coloured picture, if the training data are grey; else empty."""
        if not self.colour:
            for path in values:
                with _open(path) as picture:
                    if _is_colour(picture):
                        return f"{path.name} is in colour; the training data are grey"
        return ""


@final
class Images(UserData):
    """Pictures in a folder: ``class/name.png``, or ``train/class/name.png`` next to ``test`` (and ``val``).

    Pictures are rotated upright, drawn on white, and resized to one size. They are grey if all are grey.

    Args:
        source: the folder.
        size: height and width, or one number for both. By default the pictures keep a common size of at most
            32 pixels a side; else the longer side of the median picture becomes 32.
        options: see :class:`UserData`.
    """

    kind = "images"
    inputs = ImageInputs

    def __init__(self, source: Any, *, size: int | tuple[int, int] | None = None, **options: Any) -> None:
        super().__init__(source, **options)
        self.size = (size, size) if isinstance(size, int) else size

    def read(self, source: Any) -> RawSamples:
        """The paths of the pictures in the folder `source`; :meth:`ImageInputs.tensor` reads the pixels."""
        raw = labelled_files(Path(source), SUFFIXES, "pictures")
        raw.summary = f"{len(raw.values):,} pictures"
        return raw

    def learn(self, raw: RawSamples, training: Sequence[int]) -> Inputs:
        """The height and width of the inputs, and whether any picture is in colour."""
        sizes, colour = set(), False
        for path in raw.values:
            with _open(path) as picture:
                sizes.add((picture.height, picture.width))
                colour = colour or _is_colour(picture)
        height, width = self.size or sorted(sizes)[len(sizes) // 2]
        if self.size is None and (len(sizes) > 1 or max(height, width) > SIDE):
            factor = SIDE / max(height, width)
            height, width = max(1, round(height * factor)), max(1, round(width * factor))
        smallest, largest = (f"{rows}x{columns}" for rows, columns in (min(sizes), max(sizes)))
        raw.summary += f", {'colour' if colour else 'grey'}, {span(smallest, largest)} pixels"
        raw.summary += "" if sizes == {(height, width)} else f" resized to {height}x{width}"
        return ImageInputs(height, width, colour)


def _open(path: Path) -> Any:
    """The picture in a file, rotated upright, as a PIL image.

    Raises ValueError if it can't be read, or has floating-point pixels, whose white is not defined.
    """
    import PIL.Image
    import PIL.ImageOps

    with reading(f"picture {path}"), path.open("rb") as file:
        picture = PIL.Image.open(file)
        picture.load()
        if picture.mode == "F":
            raise ValueError("its numbers are floating-point, without a defined white; save 8 or 16 bits")
        return PIL.ImageOps.exif_transpose(picture)


def _is_colour(picture: Any) -> bool:
    """Whether a pixel of a PIL image has different red, green and blue."""
    if picture.mode in ("1", "L", "LA") or picture.mode.startswith("I"):
        return False
    bands = np.asarray(picture.convert("RGB"))
    return bool((bands[..., 1:] != bands[..., :-1]).any())
