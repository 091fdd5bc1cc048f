"""Fault injection: causes failures that occur in use, and checks what hibana promises for them.

``python -m benchmarks.faults`` runs all sections and prints one line per kind of trial. ``--only`` selects
sections; ``--quick`` makes a few trials of each kind. It needs hibana with its extras, but not the
environment of the other benchmarks.
"""
