"""Prompt templates: strings with one ``{}`` where the class name goes."""

from collections.abc import Iterator, Mapping, Sequence

_OWN = {
    "name": ("{}",),
    "a": ("a {}",),  # Detic
    "photo": ("a photo of a {}",),  # METR
}
_OPEN_CLIP = {
    "clip80": "OPENAI_IMAGENET_TEMPLATES",  # ScaleDet: CLIP's ensemble
    "clip7": "SIMPLE_IMAGENET_TEMPLATES",
}


class _Templates(Mapping[str, tuple[str, ...]]):
    """Name -> templates.  CLIP's are read when they are asked for: importing open_clip takes seconds."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name in _OWN:
            return _OWN[name]
        if name not in _OPEN_CLIP:
            raise KeyError(name)
        import open_clip

        return tuple(template("{}") for template in getattr(open_clip, _OPEN_CLIP[name]))

    def __contains__(self, name: object) -> bool:
        return name in _OWN or name in _OPEN_CLIP

    def __iter__(self) -> Iterator[str]:
        return iter((*_OWN, *_OPEN_CLIP))

    def __len__(self) -> int:
        return len(_OWN) + len(_OPEN_CLIP)


TEMPLATES: Mapping[str, tuple[str, ...]] = _Templates()


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Template strings from a name of ``TEMPLATES``, one template, or a sequence of templates.

    Raises:
        ValueError: unknown name, or a template without exactly one ``{}``.
    """
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{}" not in templates:
            raise ValueError(
                f"unknown prompt template {templates!r}: use one of {sorted(TEMPLATES)} or a string with {{}}"
            )
        templates = (templates,)
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"prompt template {template!r} must contain exactly one {{}}")
    if not templates:
        raise ValueError("no prompt template given")
    return tuple(templates)


def clean_name(name: str) -> str:
    """A class name as words: underscores to spaces, runs of blanks to one, blanks at the ends removed."""
    return " ".join(str(name).replace("_", " ").split())
