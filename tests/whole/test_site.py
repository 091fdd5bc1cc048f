"""The style of the site."""

import re
from pathlib import Path

STYLE = Path(__file__).parents[2] / "docs" / "site.css"


def test_dark_mode_does_not_invert_pictures_with_data():
    selector = re.search(r"^(.*) \{ filter: invert", STYLE.read_text(), re.MULTILINE)[1]
    excluded = re.findall(r'\[src\$="([^"]+)"\]', selector.partition(":not(")[2])
    assert "training.png" in excluded  # shows a digit in its colours
