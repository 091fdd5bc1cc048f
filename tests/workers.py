"""How tests are shared between workers, for `conftest.py`. It imports nothing heavy."""

import pytest

TOGETHER = (
    "test_defaults.py",
    "test_imports.py",
    "test_play_page.py",
    "test_predict_stream.py",
    "test_series.py",
)
"""Files whose tests one worker runs: what they share takes seconds to set up."""


def pytest_configure(config):
    """A worker that dies ends the run, red.

    Replaced, as is usual, it would be given files that are done, of which it never reports anything, and the
    run would wait for ever: pytest-xdist's issues 1323, 1327, 1378.
    """
    if getattr(config.option, "dist", "no") == "load" and config.option.maxworkerrestart is None:
        config.option.maxworkerrestart = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """What ``-n`` alone shares tests by; ``--dist`` names another way.

    Not pytest-xdist's own groups: pytest 9.2 does not let it put a mark into a test's name, and all tests are
    shared one by one, without a word (its issue 1386).
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        """One test at a time, but the files of :data:`TOGETHER` each as a whole, and first."""

        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file.rpartition("/")[2] in TOGETHER else nodeid

    return ByFile(config, log)
