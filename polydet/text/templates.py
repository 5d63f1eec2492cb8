"""Prompt templates: strings with one ``{}`` where the class name goes."""

from collections.abc import Sequence

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "a": ("a {}",),  # Detic
    "photo": ("a photo of a {}",),  # METR
    "clip80": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),  # ScaleDet: CLIP's ensemble
    "clip7": tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),
}


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
