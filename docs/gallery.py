"""Runs the gallery's code and writes its pictures: ``python docs/gallery.py``.

Below a block stands a picture of what it left in `figure` or `axes`.
"""

import os
import re
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
PART = re.compile(
    r"^```python\n(?P<code>.*?)^```$|^!\[[^\]\n]*\]\((?P<picture>\S+)\)$", re.MULTILINE | re.DOTALL
)


def main() -> None:
    os.environ.setdefault("MPLBACKEND", "Agg")
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    (DOCS / "gallery").mkdir(exist_ok=True)
    space: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for part in PART.finditer(page):
            if part["code"]:
                exec(compile(part["code"], "gallery.md", "exec"), space)  # noqa: S102 - it runs the page
                continue
            target = DOCS / part["picture"]
            drawn = space.pop("figure", None) or space["axes"]
            drawn = drawn if hasattr(drawn, "figure") else drawn[0]
            drawn.figure.savefig(target, dpi=160)  # twice what a column of the site shows
            with Image.open(target) as picture:
                picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
            print(f"{target.name}  {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
