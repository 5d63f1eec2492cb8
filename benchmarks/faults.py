"""A thousand seeded faults on two tiny runs: each ends bit-equal with the undisturbed run, or refused by name.

    python -m benchmarks.faults [--cases 1000] [--restarts 100] [--seed 0] [--work FOLDER] [--only KIND] [--output NAME]

Every case is a process of its own, forked from one that has imported the program; `--restarts` of the killed and
stopped ones are gone on with by the real command, in a new process. Writes benchmarks/results/faults.json and .md;
exits with 1 if a case ended otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from tabulate import tabulate

from benchmarks.fault_kinds import FAULTS, RESTARTS, Case
from benchmarks.fault_runs import ROOT, Campaign
from polydet import files
from polydet.engine import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=100, help="cases that are gone on with by the real command")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further case after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the runs; by default a temporary one")
    parser.add_argument("--only", default="", choices=["", *FAULTS])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "faults")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        os.environ.update(DETECTRON2_DATASETS=str(work / "datasets"), POLYDET_CACHE=str(work / "cache"))
        run.__wrapped__.__globals__["save_curves"] = lambda *_: None  # half of the time, and of no run's course
        campaign = Campaign(work)
        campaign.prepare()
        rows = go(campaign, args)
    report(rows, args)
    sys.exit(any(row["outcome"] not in ("equal", "refused") for row in rows))


def go(campaign: Campaign, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    started, restarts = time.monotonic(), 0
    for number in range(args.cases):
        seed = args.seed * 1_000_000 + number
        if time.monotonic() - started > 60 * args.minutes:
            break
        case = Case(campaign, seed, args.only, False)
        chosen = random.Random(f"restart {seed}").random() < 1.6 * args.restarts / args.cases
        case.restart = chosen and case.kind in RESTARTS and restarts < args.restarts
        outcome = case()
        restarts += case.restarted
        rows.append({"seed": seed, "fault": case.kind, "model": case.model, "detail": case.detail, "outcome": outcome})
        rows[-1]["restart"] = case.restarted
        if outcome not in ("equal", "refused"):
            print(f"\n{seed} {case.kind} {case.model} {case.detail}: {outcome}", flush=True)
        spent = time.monotonic() - started
        left = spent / (number + 1) * (args.cases - number - 1)
        if sys.stderr.isatty() or number % 20 == 19 or number == args.cases - 1:
            print(
                f"{number + 1}/{args.cases}, {spent:.0f} s, {left:.0f} s left",
                end="\r" * sys.stderr.isatty() or "\n",
                flush=True,
            )
    return rows


def report(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    table = []
    for kind in FAULTS:
        found = Counter(
            row["outcome"] if row["outcome"] in ("equal", "refused") else "wrong"
            for row in rows
            if row["fault"] == kind
        )
        if found:
            again = sum(row["restart"] for row in rows if row["fault"] == kind)
            table.append([kind, sum(found.values()), found["equal"], found["refused"], found["wrong"], again])
    table.append(["all", *(sum(row[i] for row in table) for i in range(1, 6))])
    heads = ["fault", "cases", "equal to the bit", "refused or said by name", "otherwise", "in a new process"]
    text = tabulate(table, heads, "github")
    print(text)
    content = {"seed": args.seed, "cases": rows, "torch": torch.__version__}
    files.write_text(args.output.with_suffix(".json"), json.dumps(content, indent=0) + "\n")
    files.write_text(args.output.with_suffix(".md"), f"`python -m benchmarks.faults --cases {len(rows)}`\n\n{text}\n")


if __name__ == "__main__":
    main()
