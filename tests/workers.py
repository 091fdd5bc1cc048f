"""Distribution of tests to the workers of pytest-xdist, for `conftest.py`. Its imports are fast."""

import pytest

ONE_WORKER = (
    "test_defaults.py",
    "test_imports.py",
    "test_play_page.py",
    "test_predict_stream.py",
    "test_series.py",
)
"""Files whose tests run in one worker, because their fixtures take seconds."""


def pytest_configure(config):
    """Ends the run with an error if a worker is killed.

    By default pytest-xdist replaces the worker, assigns completed files to it, and waits forever for their
    reports: its issues 1323, 1327, 1378.
    """
    if getattr(config.option, "dist", "no") == "load" and config.option.maxworkerrestart is None:
        config.option.maxworkerrestart = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The scheduler for ``-n`` without ``--dist``.

    The groups of pytest-xdist do not work: pytest 9.2 prevents the change of test names that they need, and
    all tests are silently distributed one by one (its issue 1386).
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        """Distributes single tests, except for the files of :data:`ONE_WORKER`, which come first as units."""

        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file.rpartition("/")[2] in ONE_WORKER else nodeid

    return ByFile(config, log)
