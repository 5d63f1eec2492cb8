#!/usr/bin/env python
"""The papers' tables: which config is which row, what the paper reports, what was measured here.

python tools/tables.py                                     every table, with the number of rows and configs
python tools/tables.py scaledet/table_1                    the rows of a table
python tools/tables.py --explain scaledet/table2_scaledet_swin_b_clip [--key train]
                                                           each value of a row's config, and the file that set it
python tools/tables.py --write docs/tables [--runs output] docs/tables/*.md: paper / ours / not run; what the runs
                                                           measured is kept in docs/tables/measured.json
"""

import argparse
import difflib
import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from polydet.engine import ConfigError, load_config
from polydet.engine.command import command
from polydet.engine.provenance import origins
from polydet.files import write_text
from polydet.model_zoo import config_path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def read_ledger() -> dict[str, Any]:
    """The ledger ``configs/tables.yaml``."""
    return yaml.safe_load((CONFIGS / "tables.yaml").read_text())


def tables(ledger: dict[str, Any], selection: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(paper, table id, table) of every table whose ``paper/table`` starts with ``selection``."""
    for paper, entry in ledger["papers"].items():
        for name, table in entry["tables"].items():
            if f"{paper}/{name}".startswith(selection):
                yield paper, name, table


def list_tables(ledger: dict[str, Any]) -> None:
    """One line a table."""
    lines = []
    for paper, name, table in tables(ledger):
        runs = {row["run"] for row in table["rows"] if "run" in row}
        there = sum((CONFIGS / ledger["runs"][run]["config"]).is_file() for run in runs)
        lines.append([f"{paper}/{name}", len(table["rows"]), f"{there} of {len(runs)}", table["caption"][:70]])
    print(tabulate(lines, headers=["table", "rows", "runs with config", "caption"]))


def show_table(ledger: dict[str, Any], selection: str, measured: dict[str, dict[str, Any]]) -> None:
    """The rows of the tables that match."""
    chosen = list(tables(ledger, selection))
    if not chosen:
        known = [f"{paper}/{name}" for paper, name, _ in tables(ledger)]
        sys.exit(f"no table {selection!r}; near: {', '.join(difflib.get_close_matches(selection, known, 3, 0.3))}")
    for paper, name, table in chosen:
        print(f"\n{paper}/{name}: {table['caption']}")
        print(tabulate(_rows(ledger, table, measured), headers=["row", "config", "paper", "ours"]))


def _rows(ledger: dict[str, Any], table: dict[str, Any], measured: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for row in table["rows"]:
        run = ledger["runs"].get(row.get("run"), {})
        overrides = {**run.get("overrides", {}), **row.get("overrides", {})}
        config = " ".join([run.get("config", ""), *(f"{k}={v}" for k, v in overrides.items())]).strip()
        ours = _numbers(measured[config]) if config in measured else ("not run" if config else "")
        if run.get("left_out"):
            config, ours = f"(left out: {run['left_out']})", ""
        rows.append([row["name"], config or f"({row['kind']})", _numbers(row["reported"]), ours])
    return rows


def _departures(ledger: dict[str, Any], paper: str) -> list[str]:
    """A line per listed difference between the paper's settings and the configs."""
    names = [name for name in ledger["runs"] if name.startswith(f"{paper}/")]
    lines = []
    for entry in ledger["differs"]:
        if entry["rows"][0].startswith(f"{paper}/"):
            covered = sum(any(fnmatchcase(name, pattern) for pattern in entry["rows"]) for name in names)
            where = ", ".join(f"`{pattern.removeprefix(f'{paper}/')}`" for pattern in entry["rows"])
            lines.append(
                f"- **{entry['key']}** of {where}{f' ({covered} runs)' if covered > 1 else ''}: {entry['reason']}"
            )
    return lines


def _numbers(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def explain(name: str, prefix: str) -> None:
    """Every leaf of a config: value, and the file that set it."""
    path = config_path(name)
    if path.suffix != ".py":
        raise ConfigError(f"{path} is a config as data, whose values have no other origin; name a config of configs/")
    resolved = load_config(path)
    root = CONFIGS.parent
    lines = []
    for key, (value, file) in origins(path).items():
        if key.startswith(prefix) and key.split(".")[0] in resolved:
            text = getattr(value, "__qualname__", None) or str(value)
            lines.append([key, text[:60], file.relative_to(root) if file.is_relative_to(root) else file])
    print(tabulate(lines, headers=["key", "value", "set in"]))


def read_runs(ledger: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the runs below ``folder`` whose recorded config and overrides are a row of the ledger.

    A run that changed anything else (a shorter schedule, say) is not that row and is left out.

    Returns:
        ``config key=value ...``, as the tables show it -> {dataset/task: AP}.
    """
    keys = {}
    for _, _, table in tables(ledger):
        for row in table["rows"]:
            if "run" in row:
                run = ledger["runs"][row["run"]]
                changes = [f"{k}={v}" for k, v in {**run.get("overrides", {}), **row.get("overrides", {})}.items()]
                keys[run["config"], frozenset(changes)] = " ".join([run["config"], *changes])
    found = {}
    for summary in sorted(folder.rglob("run.json")):
        record = json.loads(summary.read_text())
        results = summary.with_name("results.json")
        config = record.get("config_file") or ""  # null: a run that was started without a file
        changed = frozenset(
            o
            for o in record.get("overrides", [])
            if not o.startswith(("train.output_dir", "train.device", "dataloader.train.num_workers"))
        )
        key = keys.get((config.split("configs/")[-1], changed))
        if key and results.is_file():
            found[key] = {
                f"{dataset}/{task}": metrics["AP"]
                for dataset, tasks in json.loads(results.read_text()).items()
                for task, metrics in tasks.items()
                if metrics.get("AP") is not None
            }
    return found


def write_pages(ledger: dict[str, Any], folder: Path, measured: dict[str, dict[str, Any]]) -> None:
    """``folder/<paper>.md`` with a section a table; ``measured`` joins what ``folder/measured.json`` has."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "measured.json"
    measured = {**(json.loads(kept.read_text()) if kept.is_file() else {}), **measured}
    if measured:
        text = json.dumps(measured, indent=2, sort_keys=True) + "\n"
        write_text(kept, text)
    for paper, entry in ledger["papers"].items():
        lines = [
            f"# {entry['title']}",
            "",
            "Written by `tools/tables.py`; *ours* is what was measured with this project.",
        ]
        for note in entry["notes"]:
            lines += ["", f"- {note}"] if note is entry["notes"][0] else [f"- {note}"]
        if departures := _departures(ledger, paper):
            lines += ["", "Where a config says something else than the paper, and why:", "", *departures]
        for name, table in entry["tables"].items():
            lines += ["", f"## {name.replace('_', ' ')}", "", table["caption"]]
            if table.get("note"):
                lines += ["", f"*{table['note']}*"]
            rows = _rows(ledger, table, measured)
            lines += ["", tabulate(rows, headers=["row", "config", "paper", "ours"], tablefmt="github")]
            notes = [f"- {row['name']}: {row['note']}" for row in table["rows"] if row.get("note")]
            lines += ["", *notes] if notes else []
        text = "\n".join(lines) + "\n"
        write_text(folder / f"{paper}.md", text)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", default="", help="paper, or paper/table")
    parser.add_argument("--explain", metavar="CONFIG")
    parser.add_argument("--key", default="", help="with --explain: only keys that start so")
    parser.add_argument("--runs", type=Path, help="folder of finished runs")
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    ledger = read_ledger()
    measured = read_runs(ledger, args.runs) if args.runs else {}
    if args.explain:
        explain(args.explain, args.key)
    elif args.write:
        write_pages(ledger, args.write, measured)
        pages = [args.write / f"{paper}.md" for paper in ledger["papers"]]
        print(f"wrote {', '.join(map(str, pages))}; {len(measured)} rows measured in {args.runs or 'no runs'}")
    elif args.table:
        show_table(ledger, args.table, measured)
    else:
        list_tables(ledger)


if __name__ == "__main__":
    command(main)
