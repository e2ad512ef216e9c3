"""The page of the reference on this room."""

import re
from pathlib import Path

from iresflow import spectra

PAGE = Path(__file__).parents[2] / "docs/reference/spectra.md"


def test_the_reference_has_all_public_names_once():
    listed = re.findall(r"auto(?:class|function|data):: (\w+)", PAGE.read_text())
    assert sorted(listed) == sorted(spectra.__all__)
