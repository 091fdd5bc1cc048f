"""Writes the tutorials as notebooks, docs/tutorials/NAME.ipynb: ``python docs/notebooks.py``.

Edit the tutorial, never its notebook. Notebooks are committed without outputs, so that Colab can open them.
"""

import re
from pathlib import Path

import jupytext
import nbformat

REPOSITORY = "<owner>/hibana"
"""The repository on GitHub, in each notebook's badge and first cell. It is not published yet: set the owner
when it is, and run this script."""
ROOT = Path(__file__).parents[1]
INSTALL = f"""\
# hibana and its extras, from the repository, unless they are installed
import importlib.util

from IPython.display import Image

if importlib.util.find_spec("hibana") is None:
    %pip install -q "hibana[train,data] @ git+https://github.com/{REPOSITORY}"
"""
LANGUAGES = re.compile(r"^\[日本語\].*\n\n", re.MULTILINE)
SHELL = re.compile(r"^```sh$", re.MULTILINE)
PICTURE = re.compile(r"^!\[[^\]]*\]\(\S*?(?P<name>[^/\s]+\.png)\)\n*", re.MULTILINE)


def main() -> None:
    for page in tutorials():
        page.with_suffix(".ipynb").write_text(notebook(page), encoding="utf-8")


def tutorials() -> list[Path]:
    """The English pages of the tutorials."""
    pages = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
    return [page for page in pages if not page.name.endswith(".ja.md")]


def badge(page: Path) -> str:
    """The line of Markdown that opens the notebook of `page` in Colab."""
    path = page.with_suffix(".ipynb").relative_to(ROOT).as_posix()
    target = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{path}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})"


def notebook(page: Path) -> str:
    """The notebook of `page`, as JSON: each Python block is a cell, and shows the pictures that it draws."""
    text = LANGUAGES.sub("", page.read_text(encoding="utf-8"), count=1)
    text = SHELL.sub("```console", text)  # a block of sh would be a cell
    cells = [nbformat.v4.new_markdown_cell(badge(page)), nbformat.v4.new_code_cell(INSTALL.strip())]
    drawn: set[str] = set()
    for cell in jupytext.reads(text, fmt="md").cells:
        if cell.cell_type == "code":
            drawn.update(re.findall(r'savefig\("([^"]+)"\)', cell.source))
        else:
            for picture in PICTURE.finditer(cell.source):
                if picture["name"] in drawn:
                    cells[-1].source += f'\ndisplay(Image("{picture["name"]}"))'
                    cell.source = cell.source.replace(picture[0], "")
        if cell.source.strip():
            cells.append(cell)
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"  # random otherwise
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})) + "\n"


if __name__ == "__main__":
    main()
