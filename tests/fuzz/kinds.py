"""The kinds, imported where they are needed: some need torch, some the engine."""

import importlib


def load_kinds():
    """Register every kind."""
    for name in ("annotations", "tables", "configs", "weights", "pictures"):
        importlib.import_module(f"tests.fuzz.kinds_{name}")
