"""Runs the pages that draw, and puts what they drew into docs/pictures/.

    python docs/pictures.py             # all of them
    python docs/pictures.py start.md    # one

Each picture of a page is written by the page's own code, so that it shows what the code gives.
"""

import contextlib
import re
import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
from matplotlib import style

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def draw(page: Path, until: str = "") -> list[str]:
    """Runs a page's code, up to the block that contains `until`; returns the names of its pictures."""
    code = ""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        code += block["code"]
        if until and until in block["code"]:
            break
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102 # our own pages
        drawn = sorted(Path(folder).glob("*.png"))
        names = [f"{path.stem}-dark.png" if until else path.name for path in drawn]
        for picture, name in zip(drawn, names, strict=True):
            shutil.copy(picture, DOCS / "pictures" / name)
    return names


def draw_dark() -> list[str]:
    """Draws the picture at the top of README.md for GitHub's dark mode: light text, no background."""
    with mpl.rc_context({**style.library["dark_background"], "savefig.transparent": True}):
        return draw(DOCS / "start.md", until="one-neuron.png")


def main() -> None:
    mpl.use("Agg")
    mpl.rcParams["savefig.dpi"] = 160  # twice what a column of the site shows
    pages = [DOCS / name for name in sys.argv[1:] or ("start.md", "tiny.md", "sparse.md")]
    if not sys.argv[1:]:
        pages += sorted(DOCS.glob("tutorials/*.md"))
    for page in pages:
        print(page.name, *draw(page), flush=True)
    print("README.md", *draw_dark(), flush=True)


if __name__ == "__main__":
    main()
