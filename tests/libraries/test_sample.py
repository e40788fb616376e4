"""A small library's own tests on both loops: that the ring works, in every ordinary run. The rest of it is
`tools/dev.py libraries`, which takes an hour, and needs a network.
"""

import os
import sys
from pathlib import Path

import pytest
from running import compare, find
from table import PYTHON

FOLDER = os.environ.get("IOCP_LOOP_LIBRARY")

if FOLDER is None:
    pytest.skip(
        f"the library and its tests are pinned, and fetched by tools/dev.py, for Python {PYTHON} only: what they find "
        "on another one, the contract ring finds too",
        allow_module_level=True,
    )


@pytest.mark.slow
def test_the_tests_of_janus_come_out_on_our_loop_as_on_the_standard_library_s():
    assert f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON
    comparison = compare(find("janus"), Path(FOLDER))
    assert not comparison.problems()
    assert set(comparison.verdicts().values()) == {"passed", "skipped"}
    # A loop made by another name would make the comparison one of the standard library with itself.
    assert comparison.ours.made["other"] == 0
