"""The files of hibana import each other in one direction, also in functions and for type checkers alone.

An import of ``hibana.nn.loss`` counts as one of this file, although Python also runs ``hibana/__init__.py``.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"


def modules():
    """The text of each file of hibana, by the name of its module."""
    files = {path.relative_to(SOURCE).with_suffix("").parts: path for path in SOURCE.rglob("*.py")}
    return {
        ".".join(parts).removesuffix(".__init__"): path.read_text(encoding="utf-8")
        for parts, path in files.items()
    }


def imports(text):
    """The names of all that `text` imports anywhere, as modules and as modules' attributes."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def cycle(texts):
    """The names of modules that import each other in a circle; an empty list if there are none.

    `texts` are the modules' texts by name.
    """
    graph = {}
    for module, text in texts.items():
        names = {name if name in texts else name.rpartition(".")[0] for name in imports(text)}
        graph[module] = names & texts.keys() - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_each_other_in_a_circle():
    texts = modules()
    assert {"hibana", "hibana.network.native.stream", "hibana.train.run"} <= texts.keys()
    assert cycle(texts) == []


@pytest.mark.parametrize(
    "text",
    [
        "from hibana.network.reader import read",
        "from hibana.network import reader",
        "import hibana.network.reader",
        "if TYPE_CHECKING:\n    from hibana.network.reader import read",
        "def read():\n    from hibana.network.reader import read",
    ],
)
def test_a_circle_is_found_wherever_its_imports_are(text):
    texts = modules()
    texts["hibana.network.node"] += f"\n{text}\n"
    assert {"hibana.network.node", "hibana.network.reader"} <= {*cycle(texts)}
