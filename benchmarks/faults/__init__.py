"""Fault injection: what fails in use is made to fail here, and what hibana promises of it is checked.

``python -m benchmarks.faults`` runs all sections and prints a line for each kind of trial; ``--only`` names
sections, ``--quick`` tries each a few times. Nothing of the benchmark's environment is used: it runs where
hibana with its extras is installed.
"""
