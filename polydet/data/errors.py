"""The error that every reader, card and loader raises for bad input."""

from __future__ import annotations

__all__ = ["DatasetError"]


class DatasetError(ValueError):
    """Bad or missing data.

    The message names the file, the id of the culprit, the key and what to do about it.

    Args:
        what: what is wrong, in one sentence.
        file: the file (or several) that is at fault.
        where: the id, key, row or line inside the file.
        remedy: what the user can do.
    """

    def __init__(self, what: str, *, file: object = None, where: object = None, remedy: str | None = None):
        lines = [what if file is None else f"{file}: {what}"]
        if where is not None:
            lines.append(f"  at: {where}")
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))
        self.file, self.where, self.remedy = file, where, remedy
