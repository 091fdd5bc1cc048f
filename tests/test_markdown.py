"""Every Python block of every Markdown page runs, in order, in one namespace a page."""

import ast
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The code of each block in `language`, and the line of the page on which it begins."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        if fence["language"] == language:
            yield fence["code"], text.count("\n", 0, fence.start("code"))


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for code, line in blocks(page, "python"):
        if code.lstrip().startswith(">>>"):
            examples = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), line)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            assert runner.run(examples, clear_globs=False).failed == 0
            namespace.update(examples.globs)
        else:
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def test_both_readmes_show_the_same_code_and_commands():
    english, japanese = ROOT / "README.md", ROOT / "README.ja.md"
    code = [[ast.dump(ast.parse(text)) for text, _ in blocks(p, "python")] for p in (english, japanese)]
    assert len(code[0]) >= 5
    assert code[0] == code[1]
    commands = [[text for text, _ in blocks(p, "sh")] for p in (english, japanese)]
    assert commands[0] == commands[1]
    assert len(commands[0]) == 2
