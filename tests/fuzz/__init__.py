"""Mutated files against every reader: a right load or an error that names the file, nothing else.

``python -m tests.fuzz --cases 20000 --seed 1`` runs as many cases as asked; one case is told by kind, seed and number.
"""
