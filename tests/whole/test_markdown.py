"""Runs every Python block of every Markdown page, in one namespace per page, and compares the printed text.

A translation must have the same code as its page, except for comments, and is not run again.
Trainings on some pages are shortened here (`SHORTER`).

A page that begins with ``<!-- needs: MODULE -->`` is skipped if the module is not installed. To
test ``docs/coming-from/``, make an environment with the other libraries:

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
    "docs/tiny.md": ("epochs=10", "epochs=3"),
    "docs/tutorials/from-ann.md": ("for _ in range(8):", "for _ in range(1):"),
    "docs/tutorials/network.md": ("epochs = 5", "epochs = 1"),
    "docs/tutorials/over-time.md": ("epochs = 4", "epochs = 2"),
    "docs/tutorials/sparse.md": ("target=0.05, epochs=6", "target=0.05, epochs=1"),
    "docs/tutorials/spoken-digits.md": ("epochs = 10", "epochs = 1"),
}
"""For a page, the text that sets the length of its training (once), and its replacement here."""
NEEDS = re.compile(r"<!-- needs: (?P<module>\w+) -->\n")
MEASURED = (
    "*Of one run; the numbers differ a little on other machines:*",
    "*一例です。ほかのマシンでは数字が少し違います。*",
)
"""A line above a text block whose numbers depend on the machine, in English and Japanese."""
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The code of each block in `language`, and the line of the page at which it begins."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        if fence["language"] == language:
            yield fence["code"], text.count("\n", 0, fence.start("code"))


def needed_module(page):
    """The module that a page declares to need, or None."""
    match = NEEDS.match(page.read_text(encoding="utf-8"))
    return match and match["module"]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.filterwarnings("error::hibana.SlowPathWarning")  # cells of the pages are compiled
@pytest.mark.parametrize("page", [page for page in PAGES if page not in TRANSLATED], ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    if (module := needed_module(page)) and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        if module:
            warnings.simplefilter("ignore")  # warnings of other libraries
        run(page, *SHORTER.get(name(page), ()))


def run(page, *shorter):
    """Runs the blocks of a page; `shorter` is a text that occurs once in them, and its replacement."""
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
    """Yields each Python block, its line, and None or the text block below it and whether it was measured."""
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    for fence, following in itertools.zip_longest(fences, fences[1:]):
        if fence["language"] == "python":
            between = text[fence.end() : following.start()].strip() if following else None
            joined = between in ("", *MEASURED) and following["language"] == "text"
            shown = (following["code"], between in MEASURED) if joined else None
            yield fence["code"], text.count("\n", 0, fence.start("code")), shown


def compare(printed, shown, where, measured=False):
    """Compares the printed text of a block with the text below it, in which ``...`` matches anything.

    Numbers are ignored if the text was `measured` on another machine.
    """
    if measured:
        printed, shown = (re.sub(r"\d[\d.]*", "0", text) for text in (printed, shown))
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not checker.check_output(shown, printed, options):
        expected = doctest.Example("", shown)
        raise AssertionError(f"{where}: {checker.output_difference(expected, printed, options)}")


def test_a_block_with_other_text_is_detected(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)Expected:.*3.*Got:.*2"):
        run(page)
    page.write_text("```python\nprint(1 + 1, 0.25)\n```\n\n```text\n2 ...\n```\n")
    run(page)
    page.write_text(f"```python\nprint('2.5 ms')\n```\n\n{MEASURED[0]}\n```text\n31 ms\n```\n")
    run(page)
    page.write_text(f"```python\nprint('2.5 ms')\n```\n\n{MEASURED[0]}\n```text\n31 s\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)Expected:.*0 s.*Got:.*0 ms"):
        run(page)


@pytest.mark.parametrize("page", TRANSLATED, ids=name)
def test_a_translation_has_the_same_code_commands_and_output(page):
    original = page.with_name(page.name.replace(".ja.md", ".md"))
    source, translated = ([(parsed(code), shown) for code, _, shown in examples(p)] for p in (original, page))
    assert translated == source
    for language in ("sh", "console", "c"):
        source, translated = ([text for text, _ in blocks(p, language)] for p in (original, page))
        assert translated == source


@pytest.mark.parametrize("page", TRANSLATED, ids=name)
def test_a_translation_has_the_same_pictures_headings_rows_and_links(page):
    original = page.with_name(page.name.replace(".ja.md", ".md"))
    assert outline(page) == outline(original)
    assert f"[日本語]({page.name})" in original.read_text(encoding="utf-8").split("\n\n")[1]
    assert f"[English]({original.name})" in page.read_text(encoding="utf-8").split("\n\n")[1]


def outline(page):
    """The parts of a page that do not depend on its language: pictures, headings, table rows and links."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = {target.replace(".ja.md", ".md") for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", prose)}
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


def test_every_tutorial_has_a_japanese_translation():
    tutorials = {page for page in PAGES if page.parent.name == "tutorials"}
    translated = {page.with_name(page.name.replace(".ja.md", ".md")) for page in tutorials & {*TRANSLATED}}
    assert translated == tutorials - {*TRANSLATED}


def parsed(code):
    """The code of a block without comments; for an interactive session also its output."""
    if not code.lstrip().startswith(">>>"):
        return ast.dump(ast.parse(code))
    session = doctest.DocTestParser().get_examples(code)
    return [(ast.dump(ast.parse(example.source)), example.want) for example in session]


SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.md")))
def test_every_page_has_one_entry_in_the_site(page):
    assert SITE.count(f": {page}\n") == 1


def test_the_language_switch_leads_to_every_translation():
    translated = {str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.ja.md")}
    listed = re.search(r"  translated:.*\n((?:    - .*\n)+)", SITE)
    assert {f"{name}.ja.md" for name in re.findall(r"- (\S+)\n", listed[1])} == translated


@pytest.mark.parametrize(
    "page", ["README.md", "docs/start.md", "docs/training.md", "docs/tutorials/network.md"]
)
def test_pages_for_beginners_show_the_fast_convolution(page):
    path = ROOT / page
    code = "".join(code for code, _ in blocks(path, "python"))
    assert "nn.Conv2d(" in code
    assert "hb.optimize(" in code
    assert "EachStep(nn.Conv" not in path.read_text(encoding="utf-8")


FEATURES = {
    "norse": "PoissonEncoder dropout",
    "sinabs": "reset_states dropout",
    "snntorch": "spikegen spikeplot RLeaky ce_rate_loss fast_sigmoid reset_mem Dropout RTRL",
    "spikingjelly": "PoissonEncoder ann2snn monitor set_step_mode reset_net Dropout STDPLearner OTTTLIFNode",
}
"""Names of a library that its page must contain."""


@pytest.mark.parametrize("library", FEATURES)
def test_a_page_for_users_of_another_library_names_its_features_and_what_is_missing(library):
    text = (ROOT / "docs" / "coming-from" / f"{library}.md").read_text(encoding="utf-8")
    present, missing = text.split("## Missing in hibana")
    for name in FEATURES[library].split():
        assert re.search(rf"\b{name}\b", present), name
    assert "membrane of spiking outputs" in present
    rules = {name for name in hb.learn.__all__ if not name.islower()}
    assert not rules & {*re.findall(r"(?<![\w.])\w+", missing)}


def test_the_search_separates_words_of_both_languages():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (separator,) = re.findall(r"^ +separator: '(.*)'$", site, re.MULTILINE)
    words = {*re.split(separator, "`tau=20.0`: 膜電位がテンソルの閾値、hb.LIFは（代理勾配）")}
    assert {"tau", "20.0", "膜電位", "テンソル", "閾値", "LIF", "代理勾配"} <= words
