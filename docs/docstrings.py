"""Docstrings as the site shows them: roles such as ``:class:`IFCell` `` are links, examples are blocks."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`(?P<tilde>~?)(?P<path>[\w.]+)`")
EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


class Docstrings(Extension):
    """Writes each role as code, linked where the site documents what it names, and fences each example."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrites the docstring of `obj`."""
        if obj.docstring is not None:
            linked = ROLE.sub(lambda role: _linked(obj, role), obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("```pycon\n\\g<0>\n```", linked)


def _linked(obj: Object, role: re.Match[str]) -> str:
    path = role["path"]
    shown = path.rpartition(".")[2] if role["tilde"] else path
    full = path if path.startswith("hibana.") else f"{obj.module.path}.{path}"
    return f'<autoref identifier="{full}" optional><code>{shown}</code></autoref>'
