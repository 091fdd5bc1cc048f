"""Every Python block of every Markdown page runs, in order, in one namespace a page.

A page that begins with ``<!-- needs: MODULE -->`` is left out where the module is not installed. In an
environment with the other libraries that ``docs/coming-from/`` compares with:

    python -m venv peers
    peers/bin/pip install -e '.[test]' snntorch==1.0.0 spikingjelly==2.0.0 norse==1.1.0 sinabs==3.1.3
    peers/bin/python -m pytest tests/test_markdown.py -k coming-from
"""

import ast
import doctest
import importlib.util
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
NEEDS = re.compile(r"<!-- needs: (?P<module>\w+) -->\n")
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The code of each block in `language`, and the line of the page on which it begins."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        if fence["language"] == language:
            yield fence["code"], text.count("\n", 0, fence.start("code"))


def needed(page):
    """The module that a page can't do without, or None."""
    found = NEEDS.match(page.read_text(encoding="utf-8"))
    return found and found["module"]


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    if (module := needed(page)) and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        if module:
            warnings.simplefilter("ignore")  # what another library warns of is its own affair
        run(page)


def run(page):
    namespace = {"__name__": "__main__"}
    for code, line in blocks(page, "python"):
        if code.lstrip().startswith(">>>"):
            examples = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), line)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            assert runner.run(examples, clear_globs=False).failed == 0
            namespace.update(examples.globs)
        else:
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("name", ["README", "docs/start"])
def test_both_languages_show_the_same_code_and_commands(name):
    english, japanese = ROOT / f"{name}.md", ROOT / f"{name}.ja.md"
    code = [[ast.dump(ast.parse(text)) for text, _ in blocks(p, "python")] for p in (english, japanese)]
    assert len(code[0]) >= 5
    assert code[0] == code[1]
    commands = [[text for text, _ in blocks(p, "sh")] for p in (english, japanese)]
    assert commands[0] == commands[1]
    assert commands[0]


def test_the_readmes_hold_two_commands():
    assert len(list(blocks(ROOT / "README.md", "sh"))) == 2


@pytest.mark.parametrize("page", sorted(str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.md")))
def test_every_page_has_a_place_in_the_site(page):
    assert f": {page}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
