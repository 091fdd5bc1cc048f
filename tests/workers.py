"""How tests are shared between workers, for `conftest.py`. It imports nothing heavy."""

SOME = "load"
"""What ``-n`` alone sets ``--dist`` to."""


def pytest_configure(config):
    """With workers, what has a group runs in one of them, which sets up once what the group shares.

    A worker that dies ends the run, red. Replaced, as is usual, it would be given groups that are done, of
    which it never reports anything, and the run would wait for ever: pytest-xdist's issues 1323, 1327, 1378.
    """
    if getattr(config.option, "dist", "no") == SOME:
        config.option.dist = "loadgroup"
        if config.option.maxworkerrestart is None:
            config.option.maxworkerrestart = "0"
