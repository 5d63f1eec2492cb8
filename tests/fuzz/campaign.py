"""Cases, their verdicts and the table of a campaign."""

import logging
import random
import time
import traceback
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

KINDS = {}


class Wrong(AssertionError):
    """What was read is not what the file says."""


def kind(name):
    """Register a class as the kind of cases `name`.

    Its ``__init__(folder)`` writes what all cases need, ``case(rng)`` gives {file name: bytes}, ``read(folder)`` reads
    the files as the project does, and ``check(files, result)`` compares with what the bytes say, raising Wrong.
    ``errors`` are the refusals that count, and ``named`` words one of which each must have (file names by default).
    """

    def register(cls):
        KINDS[name] = cls
        return cls

    return register


@dataclass
class Tally:
    """What became of the cases of one kind."""

    loaded: int = 0
    refused: int = 0
    placed: int = 0
    failures: list = field(default_factory=list)
    seconds: float = 0.0


def run_case(runner, name, seed, number, folder):
    """(verdict, message, files): `loaded`, `refused` or `failed`."""
    rng = random.Random(zlib.crc32(f"{name}/{seed}/{number}".encode()))
    files = runner.case(rng) if number else runner.seed()  # case 0 is the file as it should be, and must load
    for file, data in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        result = runner.read(folder)
    except runner.errors as error:
        text = str(error)
        if number and any(word in text for word in getattr(runner, "named", ()) or files):
            return "refused", text, files
        return "failed", f"refused without a name, or although right: {type(error).__name__}: {text}", files
    except Exception:
        return "failed", traceback.format_exc(limit=-3), files
    try:
        runner.check(files, result)
    except Exception as error:
        reason = str(error) if isinstance(error, Wrong) else traceback.format_exc(limit=-3)
        return "failed", f"read, but not as the file says: {reason}", files
    return "loaded", "", files


def campaign(cases, seed, folder, names=None, say=None):
    """Run about as many cases, shared by all kinds (slow ones get fewer); {kind: Tally}."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    names = names or sorted(KINDS)
    weight = {name: getattr(KINDS[name], "share", 1.0) for name in names}
    tallies, begun, done = {}, time.time(), 0
    try:
        for name in names:
            work = folder / name
            work.mkdir(parents=True, exist_ok=True)
            runner, tally, start = KINDS[name](work), Tally(), time.time()
            count = max(2, round(cases * weight[name] / sum(weight.values())))
            for number in range(count):
                verdict, message, files = run_case(runner, name, seed, number, work)
                if verdict == "failed":
                    tally.failures.append((number, message, files))
                else:
                    setattr(tally, verdict, getattr(tally, verdict) + 1)
                    tally.placed += "  at: " in message
                done += 1
                if say and done % 200 == 0:
                    left = (time.time() - begun) / done * max(cases - done, 0)
                    failed = sum(len(t.failures) for t in tallies.values())
                    say(f"\r{done} of {cases}, {failed} failed, {left:.0f} s left ")
            tally.seconds = time.time() - start
            tallies[name] = tally
    finally:
        logging.disable(logging.NOTSET)
    return tallies


def table(tallies):
    """A row a kind."""
    rows = [
        [
            name,
            t.loaded + t.refused + len(t.failures),
            t.loaded,
            t.refused,
            t.placed,
            len(t.failures),
            f"{t.seconds:.1f}",
        ]
        for name, t in tallies.items()
    ]
    total = ["all", *(sum(row[i] for row in rows) for i in range(1, 6)), f"{sum(float(r[6]) for r in rows):.1f}"]
    return tabulate([*rows, total], ["kind", "cases", "read right", "refused by name", "with a place", "failed", "s"])


def save_failures(tallies, seed, folder):
    """Write each failing case (one of a kind and message) with its files; the paths."""
    written = []
    for name, tally in tallies.items():
        seen = Counter()
        for number, message, files in tally.failures:
            key = message.strip().splitlines()[-1][:60]
            seen[key] += 1
            if seen[key] > 3:
                continue
            target = Path(folder) / f"{name}-{seed}-{number}"
            for file, data in files.items():
                path = target / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            (target / "why.txt").write_text(
                f"{message}\nagain: python -m tests.fuzz --kind {name} --seed {seed} --case {number}\n"
            )
            written.append(target)
    return written
