"""The command: ``python -m tests.fuzz --cases 20000 --seed 1 [--kind coco voc] [--case 17]``."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import KINDS, campaign, run_case, save_failures, table
from tests.fuzz.kinds import load_kinds


def main(argv=None):
    """Number of failed cases, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", nargs="+", help="only these")
    parser.add_argument("--case", type=int, help="with one --kind: this number alone, with its message")
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"), help="where failing cases are written")
    args = parser.parse_args(argv)
    load_kinds()
    if unknown := set(args.kind or ()) - set(KINDS):
        parser.error(f"--kind {' '.join(sorted(unknown))}: not among {' '.join(sorted(KINDS))}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = os.environ["POLYDET_CACHE"] = folder
        if args.case is not None:
            (name,) = args.kind
            work = Path(folder) / name
            work.mkdir()
            verdict, message, _ = run_case(KINDS[name](work), name, args.seed, args.case, work)
            print(f"{name}, seed {args.seed}, case {args.case}: {verdict}\n{message}")
            return verdict == "failed"
        tallies = campaign(args.cases, args.seed, Path(folder), args.kind, sys.stderr.write)
    print(f"\n{table(tallies)}")
    for path in save_failures(tallies, args.seed, args.output):
        print(f"failed: {path}")
    return any(tally.failures for tally in tallies.values())


if __name__ == "__main__":
    sys.exit(main())
