"""Names of modules: which parameters a prefix pattern means."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted name lies in one of the modules.

    A pattern is a dotted prefix; each component may hold ``*``, which never crosses a dot.

    >>> matches("backbone.fpn_lateral3.weight", ["backbone.fpn_*"])
    True
    >>> matches("roi_heads.box_predictor.0.cls_score.bias", ["roi_heads.box_predictor.*.cls_score"])
    True
    >>> matches("head.cls_score_extra.bias", ["head.cls_score"])
    False
    """
    parts = name.split(".")
    for pattern in patterns:
        wanted = pattern.split(".")
        if len(wanted) <= len(parts) and all(fnmatchcase(p, w) for p, w in zip(parts, wanted)):
            return True
    return False
