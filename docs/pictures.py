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

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def draw(page: Path) -> list[str]:
    code = "\n".join(block["code"] for block in BLOCK.finditer(page.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102 # our own pages
        drawn = sorted(Path(folder).glob("*.png"))
        for picture in drawn:
            shutil.copy(picture, DOCS / "pictures" / picture.name)
    return [picture.name for picture in drawn]


def main() -> None:
    mpl.use("Agg")
    mpl.rcParams["savefig.dpi"] = 160  # twice what a column of the site shows
    asked = [DOCS / name for name in sys.argv[1:]]
    for page in asked or [DOCS / "start.md", *sorted(DOCS.glob("tutorials/*.md"))]:
        print(page.name, *draw(page), flush=True)


if __name__ == "__main__":
    main()
