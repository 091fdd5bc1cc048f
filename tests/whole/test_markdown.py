"""Every Python block of every Markdown page runs, in order, in one namespace a page; it prints what is shown.

A translation shows the code of its page, letter for letter but for the comments, and is not run again.
Trainings that pages show are `SHORTER` here: that they run, and go on to what follows, is what is tried.

A page that begins with ``<!-- needs: MODULE -->`` is left out where the module is not installed. In an
environment with the other libraries that ``docs/coming-from/`` compares with:

    python -m venv peers
    peers/bin/pip install -e '.[test]' snntorch==1.0.0 spikingjelly==2.0.0 norse==1.1.0 sinabs==3.1.3
    peers/bin/python -m pytest tests/whole/test_markdown.py -k coming-from
"""

import ast
import contextlib
import doctest
import importlib.util
import io
import itertools
import re
import warnings
from pathlib import Path

import pytest
from matplotlib.image import imread

import hibana as hb

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
TRANSLATED = [page for page in PAGES if page.name.endswith(".ja.md")]
SHORTER = {
    "docs/gallery.md": ("steps=20, epochs=8", "steps=20, epochs=1"),
    "docs/start.md": ("epochs, batch_size, rate = 10, 32, 2e-3", "epochs, batch_size, rate = 2, 32, 2e-3"),
    "docs/tutorials/from-ann.md": ("for _ in range(8):", "for _ in range(1):"),
    "docs/tutorials/network.md": ("epochs = 5", "epochs = 1"),
    "docs/tutorials/over-time.md": ("epochs = 4", "epochs = 2"),
    "docs/tutorials/sparse.md": ("target=0.05, epochs=6", "target=0.05, epochs=1"),
    "docs/tutorials/spoken-digits.md": ("epochs = 10", "epochs = 1"),
}
"""What a page says once of how long it trains, and what is run instead."""
NEEDS = re.compile(r"<!-- needs: (?P<module>\w+) -->\n")
MEASURED = "<!-- measured -->"
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


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TRANSLATED], ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    if (module := needed(page)) and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        if module:
            warnings.simplefilter("ignore")  # what another library warns of is its own affair
        run(page, *SHORTER.get(name(page), ()))


def run(page, *shorter):
    """Runs the blocks of a page; of `shorter`, the second instead of the first, which stands in them once."""
    namespace = {"__name__": "__main__"}
    assert not shorter or sum(code.count(shorter[0]) for code, *_ in examples(page)) == 1
    for code, line, shown in examples(page):
        code = code.replace(*shorter) if shorter else code
        if code.lstrip().startswith(">>>"):
            examples_ = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), line)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            assert runner.run(examples_, clear_globs=False).failed == 0
            namespace.update(examples_.globs)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        if shown is not None:
            text, measured = shown
            compare(printed.getvalue(), text, f"{page}:{line}", measured)


def examples(page):
    """Each block of Python, its line, and the text right below it, if any, and whether it was measured."""
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    for fence, below in itertools.zip_longest(fences, fences[1:]):
        if fence["language"] == "python":
            between = text[fence.end() : below.start()].strip() if below else None
            joined = between in ("", MEASURED) and below["language"] == "text"
            shown = (below["code"], between == MEASURED) if joined else None
            yield fence["code"], text.count("\n", 0, fence.start("code")), shown


def compare(printed, shown, where, measured=False):
    """Holds what a block printed against what is shown below it, where ``...`` is anything.

    Of what was `measured` on another machine, numbers and the choice of the dense product are left out.
    """
    if measured:
        printed, shown = (re.sub(r"\d[\d.]*", "0", text) for text in (printed, shown))
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not checker.check_output(shown, printed, options):
        wanted = doctest.Example("", shown)
        raise AssertionError(f"{where}: {checker.output_difference(wanted, printed, options)}")


def test_a_block_that_shows_something_else_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)Expected:.*3.*Got:.*2"):
        run(page)
    page.write_text("```python\nprint(1 + 1, 0.25)\n```\n\n```text\n2 ...\n```\n")
    run(page)
    page.write_text(f"```python\nprint('2.5 ms')\n```\n\n{MEASURED}\n```text\n31 ms\n```\n")
    run(page)
    page.write_text(f"```python\nprint('2.5 ms')\n```\n\n{MEASURED}\n```text\n31 s\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)Expected:.*0 s.*Got:.*0 ms"):
        run(page)


@pytest.mark.parametrize("page", TRANSLATED, ids=name)
def test_a_translation_shows_the_same_code_and_commands_and_what_they_print(page):
    original = page.with_name(page.name.replace(".ja.md", ".md"))
    theirs, own = ([(meant(code), shown) for code, _, shown in examples(p)] for p in (original, page))
    assert own == theirs
    for language in ("sh", "console", "c"):
        theirs, own = ([text for text, _ in blocks(p, language)] for p in (original, page))
        assert own == theirs


@pytest.mark.parametrize("page", TRANSLATED, ids=name)
def test_a_translation_has_the_same_pictures_headings_rows_and_links(page):
    original = page.with_name(page.name.replace(".ja.md", ".md"))
    assert outline(page) == outline(original)
    assert f"[日本語]({page.name})" in original.read_text(encoding="utf-8").split("\n\n")[1]
    assert f"[English]({original.name})" in page.read_text(encoding="utf-8").split("\n\n")[1]


def outline(page):
    """What a page has in either language: pictures, levels of headings, rows of tables, and links."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = {place.replace(".ja.md", ".md") for place in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", prose)}
    return {
        "pictures": re.findall(r"!\[[^\]]+\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", prose),
        "headings": re.findall(r"^#+(?= )", prose, re.MULTILINE),
        "rows": len(re.findall(r"^\|", prose, re.MULTILINE)),
        "links": links,
    }


@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_pictures_of_the_readme_have_a_dark_variant(page):
    """GitHub shows the second picture in dark mode: without background, its pixels mostly light."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "](docs/" not in re.sub(r"(?<!!)\[[^\]]*\]\([^)]+\)", "", text)  # no picture without variants
    pairs = re.findall(r'dark\)" srcset="([^"]+)">\n  <img alt="[^"]+" src="([^"]+)">', text)
    assert len(pairs) == 2
    for dark, light in pairs:
        assert (ROOT / light).exists()
        image = imread(ROOT / dark)
        visible = image[image[..., 3] > 0.5]
        assert 0 < len(visible) < image[..., 3].size / 2
        assert visible[:, :3].mean() > 0.5


def test_every_tutorial_is_there_in_japanese():
    tutorials = {page for page in PAGES if page.parent.name == "tutorials"}
    translated = {page.with_name(page.name.replace(".ja.md", ".md")) for page in tutorials & {*TRANSLATED}}
    assert translated == tutorials - {*TRANSLATED}


def meant(code):
    """The code of a block but for its comments; of a session also what it prints."""
    if not code.lstrip().startswith(">>>"):
        return ast.dump(ast.parse(code))
    said = doctest.DocTestParser().get_examples(code)
    return [(ast.dump(ast.parse(each.source)), each.want) for each in said]


@pytest.mark.parametrize("page", sorted(str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.md")))
def test_every_page_has_one_place_in_the_site(page):
    """Of a translation its original has; the language switch and the original lead to it."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert site.count(f": {page.replace('.ja.md', '.md')}\n") == 1
    assert f": {page}\n" in site or page.endswith(".ja.md")


@pytest.mark.parametrize(
    "page", ["README.md", "docs/start.md", "docs/training.md", "docs/tutorials/network.md"]
)
def test_pages_for_beginners_show_the_fast_convolution(page):
    path = ROOT / page
    code = "".join(code for code, _ in blocks(path, "python"))
    assert "nn.Conv2d(" in code
    assert "hb.optimize(" in code
    assert "EachStep(nn.Conv" not in path.read_text(encoding="utf-8")


LOOKED_FOR = {
    "norse": "PoissonEncoder dropout",
    "sinabs": "reset_states dropout",
    "snntorch": "spikegen spikeplot RLeaky ce_rate_loss fast_sigmoid reset_mem Dropout RTRL",
    "spikingjelly": "PoissonEncoder ann2snn monitor set_step_mode reset_net Dropout STDPLearner OTTTLIFNode",
}
"""Names that users of a library look for on its page."""


@pytest.mark.parametrize("library", LOOKED_FOR)
def test_a_page_for_users_of_another_library_names_its_features_and_what_is_missing(library):
    text = (ROOT / "docs" / "coming-from" / f"{library}.md").read_text(encoding="utf-8")
    there, none = text.split("## Missing in hibana")
    for name in LOOKED_FOR[library].split():
        assert re.search(rf"\b{name}\b", there), name
    assert "membrane of spiking outputs" in there
    rules = {name for name in hb.learn.__all__ if not name.islower()}
    assert not rules & {*re.findall(r"(?<![\w.])\w+", none)}
