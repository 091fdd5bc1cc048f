"""A differential fuzzer: runs random programs with hibana and with plain PyTorch, and compares the results.

``python -m fuzz`` (with ``tests`` on the path) runs a number of cases or of minutes in subprocesses. It
prints each finding as the smallest program that shows it. ``tests/compiler/test_fuzz.py`` runs a few cases.
"""
