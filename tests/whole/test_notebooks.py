"""The notebooks are what docs/notebooks.py writes of the tutorials now; ``.ci/run`` runs them."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "notebooks.py"))
PAGES = SCRIPT["tutorials"]()
NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))


def cells(page, kind="code"):
    content = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def test_every_tutorial_has_a_notebook():
    assert [page.with_suffix(".ipynb") for page in PAGES] == NOTEBOOKS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_is_that_of_its_tutorial_without_outputs(page):
    text = page.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == SCRIPT["notebook"](page), "run `python docs/notebooks.py`"
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_installs_hibana_and_has_the_code_of_its_tutorial(page):
    install, *code = cells(page)
    assert re.search(r'%pip install -q "hibana\[train,data\] @ git\+https://github.com/\S+/hibana"', install)
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    shown = [re.sub(r"\ndisplay\(Image\(.*\)\)", "", cell) for cell in code]
    assert shown == [block.strip() for block in blocks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_badge_opens_the_notebook_itself(page):
    badge = cells(page, "markdown")[0]
    (path,) = re.findall(r"colab\.research\.google\.com/github/[^/]+/hibana/blob/main/([^)]+)\)", badge)
    assert ROOT / path == page.with_suffix(".ipynb")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_of_a_notebook_lead_to_files(page):
    text = re.sub(r"^```.*?^```$", "", "\n".join(cells(page, "markdown")), flags=re.MULTILINE | re.DOTALL)
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    assert [t for t in targets if t and not (page.parent / t).exists()] == []
    saved = set(re.findall(r'savefig\("([^"]+)"\)', "\n".join(cells(page))))
    assert set(re.findall(r'Image\("([^"]+)"\)', "\n".join(cells(page)))) == saved
