"""What is seen: two views, of Bokeh's widgets and figures. Nothing here computes what it shows."""

from hibana.cli.play.view.page import page

__all__ = ["page"]
