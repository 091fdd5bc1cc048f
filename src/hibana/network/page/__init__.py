"""A network as one page for the browser: whole numbers, compiled to WebAssembly, that one draws to."""

from hibana.network.page.build import to_page

__all__ = ["to_page"]
