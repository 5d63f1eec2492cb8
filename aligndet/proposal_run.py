"""Selective search over a dataset: processes, progress, shards that survive a kill."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from polydet.data import read_image
from polydet.data.readers.json_file import column, load_json, safe_relative_path, section
from polydet.files import text_digest, whole_file, write_text

from .proposal_columns import ProposalColumns
from .proposals import ProposalSettings, propose

logger = logging.getLogger(__name__)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class ImageRecord:
    """One image to search: its id, and its path relative to the image root."""

    image_id: int
    file_name: str


def images_of_json(json_file: Path) -> list[ImageRecord]:
    """Images of a COCO or LVIS json, in file order; annotations are not looked at.

    Raises DatasetError naming the file and the entry: broken json, ids that are no integers, names that leave the
    image folder.
    """
    path = Path(json_file)
    images = section(load_json(path), "images", path)
    ids = column(images, "id", "int", path, "images")
    records = []
    for i, (number, image) in enumerate(zip(ids.tolist(), images)):
        key = "file_name" if image.get("file_name") else "coco_url"
        name = column([image], key, "str", path, "images")[0]
        if key == "coco_url":
            name = "/".join(name.split("/")[-2:])
        records.append(ImageRecord(number, safe_relative_path(name, path, f"images[{i}] (id {number})")))
    return records


def images_of_folder(root: Path) -> list[ImageRecord]:
    """Every image below a folder, ids from 1 in the order of the paths."""
    paths = sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) below {root}")
    return [ImageRecord(i + 1, name) for i, name in enumerate(paths)]


def _start_worker() -> None:
    # one thread each: the processes are the parallelism
    cv2.setNumThreads(1)


def _search_shard(
    records: Sequence[ImageRecord], root: str, settings: ProposalSettings, target: str
) -> tuple[int, int]:
    """Search the images of one shard and write it in one move. Returns (images, unreadable images)."""
    boxes, counts, ids, names, sizes, unreadable = [], [0], [], [], [], []
    for record in records:
        path = os.path.join(root, record.file_name)
        try:
            image = read_image({"file_name": path}, "BGR")
            found = propose(image, settings, record.image_id)
        except (ValueError, cv2.error) as error:  # DatasetError is one of them
            unreadable.append({"image_id": record.image_id, "file_name": record.file_name, "reason": str(error)})
            continue
        boxes.append(found)
        counts.append(len(found))
        ids.append(record.image_id)
        names.append(record.file_name)
        sizes.append(image.shape[:2])
    with whole_file(target) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            boxes=np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32),
            counts=np.asarray(counts[1:], np.int64),
            image_ids=np.asarray(ids, np.int64),
            sizes=np.asarray(sizes, np.int32).reshape(-1, 2),
            text=np.asarray(json.dumps({"file_names": names, "unreadable": unreadable})),
        )
    return len(records), len(unreadable)


def _plan(
    records: Sequence[ImageRecord], work: Path, settings: ProposalSettings, shard_size: int
) -> list[tuple[Sequence[ImageRecord], Path]]:
    """The shards of a run; refuses a work folder that belongs to other images or settings."""
    if len({r.image_id for r in records}) != len(records):
        raise ValueError("image ids repeat in the list of images; proposals could not be told apart")
    listing = "\n".join(f"{r.image_id} {r.file_name}" for r in records)
    plan = {
        "settings": settings.as_dict(),
        "images": text_digest(listing),
        "shard_size": shard_size,
    }
    work.mkdir(parents=True, exist_ok=True)
    plan_file = work / "plan.json"
    if plan_file.exists():
        old = json.loads(plan_file.read_text())
        changed = [key for key in plan if old.get(key) != plan[key]]
        if changed:
            raise ValueError(
                f"{work} holds shards of another run ({', '.join(changed)} differ): "
                "remove the folder to start afresh, or name another output"
            )
    else:
        write_text(plan_file, json.dumps(plan, indent=1))
    starts = range(0, len(records), shard_size)
    return [(records[s : s + shard_size], work / f"shard-{s // shard_size:06d}.npz") for s in starts]


def _is_whole(shard: Path) -> bool:
    """Whether a shard is there and as it was written (a zip has checksums); a damaged one is searched again."""
    try:
        with zipfile.ZipFile(shard) as archive:
            if (damaged := archive.testzip()) is None:
                return True
    except FileNotFoundError:
        return False
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError) as error:
        damaged = str(error)
    logger.warning("%s is damaged (%s): its images are searched again", shard, damaged)
    return False


def _merge(shards: Sequence[Path], settings: ProposalSettings) -> tuple[ProposalColumns, list[dict]]:
    boxes, counts, ids, sizes, names, unreadable = [], [], [], [], [], []
    for path in shards:
        with np.load(path) as shard:
            boxes.append(shard["boxes"])
            counts.append(shard["counts"])
            ids.append(shard["image_ids"])
            sizes.append(shard["sizes"])
            text = json.loads(str(shard["text"]))
        names.extend(text["file_names"])
        unreadable.extend(text["unreadable"])
    count = np.concatenate(counts)
    all_boxes = np.concatenate(boxes)
    all_boxes[:, 2:] -= all_boxes[:, :2]
    columns = ProposalColumns(
        boxes=all_boxes,
        labels=np.zeros(len(all_boxes), np.uint16),
        offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        image_ids=np.concatenate(ids),
        sizes=np.concatenate(sizes),
        file_names=names,
        info={
            "settings": settings.as_dict(),
            "num_labels": 1,
            "images": len(count),
            "boxes": len(all_boxes),
            "images_without_boxes": int((count == 0).sum()),
            "unreadable": len(unreadable),
        },
    )
    return columns, unreadable


def run(
    records: Sequence[ImageRecord],
    root: Path,
    output: Path,
    settings: ProposalSettings,
    workers: int = 1,
    shard_size: int = 32,
    write_json: bool = True,
) -> ProposalColumns:
    """Search every image and write ``<output>.columns/`` and, if asked, ``<output>.json``.

    Finished shards lie in ``<output>.shards/``, each written in one move: after a kill the same call goes on with
    the shards that are missing and the result is the same, byte for byte. Images that cannot be read are listed in
    ``<output>.unreadable.json`` with the reason and do not stop the run.

    Args:
        root: folder that the records' file names are relative to.
        output: path without suffix.
        workers: processes; 0 or 1 searches in this process.

    Raises:
        ValueError: if the shards on disk belong to other images or settings, or image ids repeat.
        RuntimeError: if no image at all could be read.
    """
    output = Path(output)
    work = output.with_name(output.name + ".shards")
    shards = _plan(records, work, settings, shard_size)
    whole = {path for _, path in shards if _is_whole(path)}
    todo = [(part, path) for part, path in shards if path not in whole]
    if len(todo) < len(shards):
        logger.info("%d of %d shards are there already", len(shards) - len(todo), len(shards))
    done = sum(len(part) for part, path in shards if path in whole)
    failed = 0
    with tqdm(total=len(records), initial=done, unit="img", desc="selective search") as bar:
        for images, bad in _search(todo, root, settings, workers):
            failed += bad
            bar.update(images)
            bar.set_postfix(unreadable=failed)
    columns, unreadable = _merge([path for _, path in shards], settings)
    write_text(output.with_name(output.name + ".unreadable.json"), json.dumps(unreadable, indent=1))
    if len(columns) == 0:
        raise RuntimeError(f"none of the {len(records)} images below {root} could be read: {unreadable[:3]}")
    if unreadable:
        logger.warning("%d images could not be read; see %s.unreadable.json", len(unreadable), output)
    columns.save(output.with_name(output.name + ".columns"))
    if write_json:
        columns.write_coco(output.with_name(output.name + ".json"))
    return columns


def _search(
    todo: Sequence[tuple[Sequence[ImageRecord], Path]], root: Path, settings: ProposalSettings, workers: int
) -> Iterator[tuple[int, int]]:
    if workers <= 1:
        for part, path in todo:
            yield _search_shard(part, str(root), settings, str(path))
        return
    context = multiprocessing.get_context("spawn")  # a forked process inherits locks of threads that it lacks
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = [pool.submit(_search_shard, part, str(root), settings, str(path)) for part, path in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # a full disk, say: do not search the rest before saying so
            pool.shutdown(wait=False, cancel_futures=True)
            raise
