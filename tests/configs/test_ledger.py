"""Every setting of every run in configs/tables.yaml against the resolved config, and the departures that it lists."""

from collections import defaultdict
from fnmatch import fnmatchcase

import pytest
import yaml
from ledger_readers import READERS, read
from ledger_row import Row

from polydet import model_zoo

LEDGER = yaml.safe_load((model_zoo.zoo.config_root() / "tables.yaml").read_text())
RUNS = {name: run for name, run in LEDGER["runs"].items() if "left_out" not in run}
PAPERS = list(LEDGER["papers"])
DIFFERS = [entry for entry in LEDGER["differs"] if "params_M" not in entry["key"]]  # sizes: test_parameters.py


def rows_of(paper):
    """Every run, and every row of a table that states settings over its run's."""
    for name, run in RUNS.items():
        if name.startswith(f"{paper}/"):
            yield name, Row(name, run, run["settings"], run.get("overrides", {}))
    for table, entry in LEDGER["papers"][paper]["tables"].items():
        for line in entry["rows"]:
            if "settings" in line and "run" in line:
                run = LEDGER["runs"][line["run"]]
                overrides = {**run.get("overrides", {}), **line.get("overrides", {})}
                yield f"{paper}/{table}/{line['name']}", Row(line["run"], run, line["settings"], overrides)


def expected_to_differ(name, key):
    """Index of the departure that covers a setting of a row, or None."""
    for index, entry in enumerate(DIFFERS):
        if entry["key"] == key and any(fnmatchcase(name, pattern) for pattern in entry["rows"]):
            return index
    return None


def same(stated, found):
    if isinstance(stated, float) or isinstance(found, float):
        return not isinstance(found, str | list) and found == pytest.approx(stated, rel=1e-6)
    if isinstance(stated, list) and isinstance(found, list):
        return sorted(map(str, stated)) == sorted(map(str, found))
    return stated == found


def test_every_setting_has_a_reader():
    stated = {key for run in LEDGER["runs"].values() for key in run["settings"]}
    left_out = {key for run in LEDGER["runs"].values() if "left_out" in run for key in run["settings"]}
    in_rows = {key for paper in PAPERS for _, row in rows_of(paper) for key in row.stated}
    assert (stated | in_rows) - set(READERS) <= left_out - {key for run in RUNS.values() for key in run["settings"]}
    assert not set(READERS) - stated - in_rows, "readers of settings that no run states"


@pytest.mark.parametrize("paper", PAPERS)
def test_settings_are_what_the_configs_say(anywhere, paper):
    wrong, used = defaultdict(list), set()
    for name, row in rows_of(paper):
        for key, stated in row.stated.items():
            try:
                found = read(key, row)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            listed = expected_to_differ(name, key)
            if listed is not None:
                used.add(listed)
            if same(stated, found) == (listed is not None):
                said = "is listed under `differs` but is equal" if listed is not None else f"config: {found}"
                wrong[f"{key}: {stated}; {said}"].append(name)
    assert not wrong, "\n".join(f"{what}\n    {len(names)}: {', '.join(names[:4])}" for what, names in wrong.items())
    mine = {i for i, entry in enumerate(DIFFERS) if any(p.split("/")[0] == paper for p in entry["rows"])}
    assert used == mine, [DIFFERS[i] for i in mine - used]


def other(value):
    """A value that no config has."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 3 * value + 1
    return [*value, "something else"] if isinstance(value, list) else "something else"


@pytest.mark.parametrize("key", READERS)
def test_a_wrong_setting_is_noticed(anywhere, key):
    name, run = next((name, run) for name, run in RUNS.items() if key in run["settings"])
    wrong = {**run["settings"], key: other(run["settings"][key])}
    try:
        found = read(key, Row(name, run, wrong, run.get("overrides", {})))
    except (KeyError, AssertionError):
        return  # also a way to say no
    assert not same(wrong[key], found)


def test_every_trained_row_is_a_run_and_every_config_is_a_row():
    untrained = [
        f"{paper}/{table}/{row['name']}"
        for paper, entry in LEDGER["papers"].items()
        for table, rows in entry["tables"].items()
        for row in rows["rows"]
        if row["kind"] != "cited" and "run" not in row
    ]
    assert not untrained
    files = {f"{name}.py" for name in model_zoo.list_configs() if name.split("/")[0] in PAPERS}
    assert files == {run["config"] for run in RUNS.values()}


def test_departures_have_reasons():
    for entry in LEDGER["differs"]:
        assert set(entry) == {"key", "rows", "reason"} and entry["rows"], entry
        assert entry["key"] in [*READERS, "params_M", "enc_params_M"] and len(entry["reason"]) > 20, entry
