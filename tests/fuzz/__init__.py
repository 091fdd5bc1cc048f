"""A differential fuzzer: what nobody wrote, run as hibana runs it and as PyTorch alone does.

``python -m fuzz`` (with ``tests`` on the path) runs it for a number of cases or of minutes, in processes of
their own, and prints each finding as the smallest program that shows it; ``tests/compiler/test_fuzz.py``
runs a part.
"""
