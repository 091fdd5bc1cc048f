"""A network as one web page: an integer network in WebAssembly that classifies drawings."""

from hibana.network.page.build import to_page

__all__ = ["to_page"]
