"""Pictures of a network as Bokeh takes them, and what moves them in the browser."""

from typing import Any

import numpy as np

__all__ = ["MOVE", "PLAY", "spread_out", "coloured", "room", "short"]

PLAY = """
clearInterval(window.playing)
if (cb_obj.active) {
  step.value = step.start
  window.playing = setInterval(() => {
    if (step.value >= step.end) { cb_obj.active = false } else { step.value = step.value + 1 }
  }, Math.max(60, Math.min(400, 5000 / (step.end - step.start + 1))))
}
"""
MOVE = """
for (const cover of later) { cover.left = cb_obj.value + 0.5 }
now.location = cb_obj.value
"""


def coloured(layer: dict[str, Any], colour: str) -> dict[str, Any]:
    """A raster as a picture: `colour` where a neuron spikes, transparent elsewhere."""
    raster = layer["raster"]
    picture = np.zeros((*raster.shape, 4), np.uint8)
    picture[..., :3] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    picture[..., 3] = raster
    return {
        "image": [picture.view(np.uint32).reshape(raster.shape)],
        "x": [-0.5],
        "y": [0],
        "dw": [raster.shape[1]],
        "dh": [layer["neurons"]],
    }


def spread_out(ends: np.ndarray[Any, Any], distance: float) -> list[float]:
    """The ends of lines as places for names, moved up where they lie closer than `distance`."""
    places, height = ends.astype(float), -np.inf
    for index in ends.argsort():
        height = places[index] = max(height + distance, places[index])
    return [float(place) for place in places]


def room(steps: int, names: list[str]) -> float:
    """How many steps wide the names beside the ends of `steps` steps are, in a figure 250 pixels wide."""
    wide = min(0.5, (12 + 7 * max(map(len, names))) / 250)
    return max(0.0, (wide * steps - 0.5) / (1 - wide))


def short(name: str) -> str:
    """A name that fits beside a line."""
    return name if len(name) <= 16 else f"{name[:15]}…"
