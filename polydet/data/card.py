"""Dataset cards: one declaration per dataset, from which everything else derives."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detectron2.data import DatasetCatalog, MetadataCatalog

from polydet.data.errors import DatasetError
from polydet.text import resolve_templates

__all__ = [
    "DatasetCard",
    "datasets_root",
    "find_card",
    "list_cards",
    "missing_files",
    "prepare_cards",
    "register_card",
    "register_generator",
    "sync_metadata",
]


def datasets_root() -> Path:
    """Where relative paths of cards start: the environment variable DETECTRON2_DATASETS, by default ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


@dataclass(frozen=True)
class DatasetCard:
    """What is to be known about one dataset; nothing else states a number of classes.

    Paths are absolute or relative to `datasets_root()` and are looked at only when the data is used.

    Attributes:
        name: key in Detectron2's DatasetCatalog and MetadataCatalog.
        json_file: annotation file, or several (read one after the other).
        image_root: folder to which image names are relative, or one per annotation file.
        format: which reader, a key of `polydet.data.readers.READERS`.
        classes: class names; contiguous id = position. None: taken from the annotation file.
        category_ids: id of each class in the annotation file. None: the file's categories are matched by name.
        spelling: name in the file -> name in `classes` (spelling fixes).
        templates: prompts with one `{}` for the class name, or a key of `polydet.text.TEMPLATES`.
        label_policy: `exhaustive` (every object of every class is annotated) or `federated` (only classes verified
            for an image are known to be present or absent).
        evaluator: which evaluator, a key of `polydet.evaluation.EVALUATORS`.
        max_dets: how many detections of an image count in the metric; None: as many as the metric says (COCO 100 of a
            class, LVIS 300). For images with more objects than that.
        hierarchy: file of a class hierarchy, where there is one.
        files: further files the reader needs, by role.
        options: further arguments of the reader.
        generator: what writes the dataset on first use, for generated datasets; a name of `register_generator`.
        images: how many images the whole dataset has (`tools/check_datasets.py` compares).
        about, url, licence: where the files come from and under which terms.
    """

    name: str
    json_file: str | tuple[str, ...]
    image_root: str | tuple[str, ...]
    format: str = "coco"
    classes: tuple[str, ...] | None = None
    category_ids: tuple[int | str, ...] | None = None
    spelling: Mapping[str, str] = field(default_factory=dict)
    templates: str | tuple[str, ...] = "photo"
    label_policy: Literal["exhaustive", "federated"] = "exhaustive"
    evaluator: str = "coco"
    max_dets: int | None = None
    hierarchy: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    generator: str | None = None
    images: int | None = None
    about: str = ""
    url: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        """Refuse a card that contradicts itself."""
        if not re.fullmatch(r"[\w.+@-]+", self.name) or self.name.startswith("."):
            raise DatasetError(
                f"card name {self.name!r} is not made of letters, digits, _ . + @ -",
                remedy="the name becomes a folder of the run's output",
            )
        self._check_types()
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            seen: set[str] = set()
            twice = [n for n in self.classes if n in seen or seen.add(n)]  # type: ignore[func-returns-value]
            if twice or not self.classes:
                what = f"card {self.name!r} names {twice} twice" if twice else f"card {self.name!r} has no classes"
                raise DatasetError(what, remedy="give every class once")
        if self.category_ids is not None and len(self.category_ids) != len(self.classes or ()):
            raise DatasetError(
                f"card {self.name!r} has {len(self.classes or ())} classes but {len(self.category_ids)} category_ids",
                remedy="give one id per class, in the same order",
            )
        if self.generator is not None and self.generator not in _GENERATORS:
            raise DatasetError(
                f"card {self.name!r}: no generator is named {self.generator!r}",
                remedy=f"one of {sorted(_GENERATORS)}; a program adds its own with polydet.data.register_generator",
            )
        if self.label_policy not in ("exhaustive", "federated"):
            raise DatasetError(f"card {self.name!r}: unknown label_policy {self.label_policy!r}")
        try:
            object.__setattr__(self, "templates", resolve_templates(self.templates))
        except ValueError as error:
            raise DatasetError(f"card {self.name!r}: {error}") from error

    def _check_types(self) -> None:
        for key in ("json_file", "image_root"):
            value = getattr(self, key)
            if not value or not isinstance(value, str) and not _are_texts(value):
                raise DatasetError(f"card {self.name!r}: {key} is {value!r}", remedy="give a path, or a list of paths")
        if self.classes is not None and not _are_texts(self.classes):
            raise DatasetError(
                f"card {self.name!r}: classes are {self.classes!r:.80}, not a list of names",
                remedy="write every name in quotes: YAML reads on and 1 as a truth value and a number",
            )
        for key in ("spelling", "files", "options"):
            value = getattr(self, key)
            if not isinstance(value, Mapping):
                raise DatasetError(f"card {self.name!r}: {key} is {value!r}, not a mapping")
            texts = [*value, *(() if key == "options" else value.values())]
            if wrong := [text for text in texts if not isinstance(text, str)]:
                raise DatasetError(f"card {self.name!r}: {key} has {wrong[0]!r}, which is not text")
        for key in ("format", "label_policy", "evaluator", "hierarchy", "generator", "about", "url", "licence"):
            value = getattr(self, key)
            if not isinstance(value, str) and not (value is None and key in ("hierarchy", "generator")):
                raise DatasetError(f"card {self.name!r}: {key} is {value!r}, which is not text")
        for key, what in (("images", "images"), ("max_dets", "detections")):
            value = getattr(self, key)
            if value is not None and (type(value) is not int or value < 1):
                raise DatasetError(f"card {self.name!r}: {key} is {value!r}, not a number of {what}")
        ids = () if self.category_ids is None else self.category_ids
        if not isinstance(ids, (list, tuple)) or not all(type(id_) in (int, str) for id_ in ids):
            raise DatasetError(f"card {self.name!r}: category_ids are {ids!r:.80}, not a list of numbers or texts")

    @property
    def json_files(self) -> tuple[Path, ...]:
        """Annotation files as paths; a pattern with * stands for the files it matches (itself if none)."""
        paths: list[Path] = []
        for file in map(resolve, _as_tuple(self.json_file)):
            matches = sorted(file.parent.glob(file.name)) if "*" in file.name else []
            paths += matches or [file]
        return tuple(paths)

    @property
    def image_roots(self) -> tuple[Path, ...]:
        """Image folders, one per annotation file."""
        roots = tuple(resolve(root) for root in _as_tuple(self.image_root))
        return roots * len(self.json_files) if len(roots) == 1 else roots

    def file(self, role: str) -> Path:
        """Path of the further file with this role."""
        if role not in self.files:
            raise DatasetError(f"card {self.name!r} has no file {role!r}", remedy=f"one of {sorted(self.files)}")
        return resolve(self.files[role])

    def required_files(self) -> list[Path]:
        """Every file and folder that must exist before the card can be read."""
        hierarchy = [resolve(self.hierarchy)] if self.hierarchy else []
        extra = [resolve(path) for path in self.files.values()]
        other = self.options.get("exclude_images_of")
        related = list(find_card(other).json_files) if other else []
        return [*self.json_files, *extra, *hierarchy, *related, *dict.fromkeys(self.image_roots)]

    def prepare(self) -> None:
        """Write the dataset if it is a generated one and is not there yet."""
        if self.generator is not None:
            _GENERATORS[self.generator](self)


_CARDS: dict[str, DatasetCard] = {}
_GENERATORS: dict[str, Callable[[DatasetCard], Any]] = {}
_LOADERS: list[Callable[[str], Any]] = []
_STAND_INS: set[str] = set()  # names of cards of which nothing but the classes is known
_FINDERS: list[Callable[[str], DatasetCard | None]] = []  # where else a card may be found


def set_loader(loader: Callable[[str], Any]) -> None:
    """Tell the registry how a card is loaded (kept here so that a card module imports no reader)."""
    _LOADERS[:] = [loader]


def add_finder(finder: Callable[[str], DatasetCard | None]) -> None:
    """Ask `finder` for cards that are not registered."""
    _FINDERS.append(finder)


def register_generator(name: str, generator: Callable[[DatasetCard], Any]) -> None:
    """Let cards ask for `generator` by name; a card may come from a file, which can name no function of its own."""
    _GENERATORS[name] = generator


def register_card(card: DatasetCard, *, overwrite: bool = False) -> DatasetCard:
    """Make a card known here and in Detectron2's DatasetCatalog and MetadataCatalog; touches no file.

    A name that Detectron2 registers itself (`coco_2017_train`, ...) is taken over. Raises DatasetError if a card of
    that name exists and differs, unless `overwrite`.
    """
    known = _CARDS.get(card.name)
    if known is not None and known != card and not overwrite and card.name not in _STAND_INS:
        raise DatasetError(
            f"a card named {card.name!r} exists already", remedy="choose another name or pass overwrite=True"
        )
    if card.name in DatasetCatalog:
        DatasetCatalog.remove(card.name)
    if card.name in MetadataCatalog.list():
        MetadataCatalog.remove(card.name)
    _CARDS[card.name] = card
    _STAND_INS.discard(card.name)
    DatasetCatalog.register(card.name, lambda name=card.name: _LOADERS[0](name))
    sync_metadata(card)
    return card


def sync_metadata(card: DatasetCard) -> None:
    """Write what the card knows into Detectron2's metadata; paths follow `datasets_root()` as it is now."""
    known: dict[str, Any] = {"evaluator_type": card.evaluator, "image_root": str(card.image_roots[0])}
    if card.format in ("coco", "lvis", "grounding") and len(card.json_files) == 1:
        known["json_file"] = str(card.json_files[0])
    if card.classes is not None:
        known["thing_classes"] = list(card.classes)
    if card.category_ids is not None:
        known["thing_dataset_id_to_contiguous_id"] = {id_: i for i, id_ in enumerate(card.category_ids)}
    meta = MetadataCatalog.get(card.name)
    for key, value in known.items():
        if meta.get(key) != value:
            meta.__dict__.pop(key, None)
            setattr(meta, key, value)


def refuse_formats(names: Iterable[str], formats: Collection[str], use: str) -> None:
    """Cards of these formats do not fit a use.

    Args:
        names: cards, or unknown names, which `prepare_cards` reports.
        formats: keys of `polydet.data.readers.READERS`.
        use: what needs other cards, for the message: "--detection needs classes with boxes".

    Raises:
        DatasetError: naming the card and its format.
    """
    for name in names:
        if (format := find_card(name).format) in formats:
            raise DatasetError(f"{use}: the card {name!r} is of the format {format!r}")


def find_card(name: str) -> DatasetCard:
    """The card as it was registered (or found in a card file), without looking at its data.

    Raises DatasetError with near names.
    """
    for finder in _FINDERS if name not in _CARDS else ():
        if (card := finder(name)) is not None:
            register_card(card)
            break
    if name not in _CARDS:
        import difflib

        near = difflib.get_close_matches(name, _CARDS, n=5, cutoff=0.5)
        raise DatasetError(
            f"no dataset card is named {name!r}",
            remedy=f"did you mean one of {near or sorted(_CARDS)}? Your own data needs register_card or "
            "tools/add_dataset.py",
        )
    return _CARDS[name]


def forget_card(name: str) -> None:
    """Take a card out again, here and in Detectron2's catalogs; one that is not there is no error."""
    _CARDS.pop(name, None)
    _STAND_INS.discard(name)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)


def is_known(name: str) -> bool:
    """Whether there is a card of that name."""
    try:
        find_card(name)
    except DatasetError:
        return False
    return True


def stand_in_cards(classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Cards for names that are not known here, with the given classes and no data; returns the names.

    They tell what a checkpoint's labels are. A card of that name that is registered later takes its place.
    """
    made = [name for name in classes if not is_known(name)]
    for name in made:
        register_card(DatasetCard(name, f"{name}.json", name, classes=tuple(classes[name])))
        _STAND_INS.add(name)
    return made


def list_cards() -> list[str]:
    """Names of all registered cards."""
    return sorted(_CARDS)


def missing_files(names: Iterable[str]) -> dict[str, list[Path]]:
    """Files that the named cards need and that are not on disk, per card (cards with nothing missing left out)."""
    missing = {}
    for name in dict.fromkeys(names):
        absent = [path for path in find_card(name).required_files() if not path.exists()]
        if absent:
            missing[name] = absent
    return missing


def prepare_cards(names: Iterable[str]) -> None:
    """Generate what can be generated, then raise one DatasetError that lists every missing file of every card."""
    names = list(dict.fromkeys(names))
    for name in names:
        find_card(name).prepare()
    missing = missing_files(names)
    if missing:
        lines = [f"  {name}: {path}" for name, paths in missing.items() for path in paths]
        where = {find_card(name).url for name in missing} - {""}
        raise DatasetError(
            f"{sum(map(len, missing.values()))} files or folders of {len(missing)} datasets are missing:\n"
            + "\n".join(lines),
            remedy=f"put the data under DETECTRON2_DATASETS (now {datasets_root().absolute()})"
            + (f"; it comes from {', '.join(sorted(where))}" if where else "")
            + "; docs/datasets.md shows the layout and tools/check_datasets.py verifies it",
        )


def resolve(path: str) -> Path:
    """A card's path as it is now."""
    return datasets_root() / os.path.expanduser(path)


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value)


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
