"""Sizes that the papers report against the models that the rows build, on the meta device."""

import pytest
import yaml
from ledger_row import build, load

from polydet import model_zoo

LEDGER = yaml.safe_load((model_zoo.zoo.config_root() / "tables.yaml").read_text())
KEYS = ("params_M", "enc_params_M")  # millions
REPORTED = {
    f"{paper}/{table}/{row['name']}/{row['run'].split('/')[1]}": (key, row)
    for paper, entry in LEDGER["papers"].items()
    for table, rows in entry["tables"].items()
    for row in rows["rows"]
    for key in KEYS
    if key in row["reported"] and "run" in row
}


def count(model, convention):
    """Millions of parameters under a convention of the ledger."""
    if convention == "backbone":
        return sum(p.numel() for p in model.backbone.bottom_up.parameters()) / 1e6
    if convention == "without auxiliary heads":
        return sum(p.numel() for n, p in model.named_parameters() if not n.startswith("collaborators.")) / 1e6
    assert convention == "trainable", convention
    return sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6


def test_the_papers_that_report_sizes_are_covered():
    assert {name.split("/")[0] for name in REPORTED} == {"metr", "codetr", "aligndet"} and len(REPORTED) >= 17


@pytest.mark.parametrize("name", REPORTED)
def test_parameters_are_within_two_percent(anywhere, name):
    key, row = REPORTED[name]
    found = count(build(load(LEDGER["runs"][row["run"]]["config"])), row["parameters"])
    row_name = name.rsplit("/", 1)[0]
    listed = [e for e in LEDGER["differs"] if e["key"] == key and row_name in e["rows"]]
    close = abs(found / row["reported"][key] - 1) <= 0.02
    assert close != bool(listed), f"{found:.2f} M {row['parameters']}, reported {row['reported'][key]} M; {listed}"


def test_departures_in_size_are_rows_that_exist():
    known = {name.rsplit("/", 1)[0] for name in REPORTED}
    for entry in LEDGER["differs"]:
        assert entry["key"] not in KEYS or set(entry["rows"]) <= known, entry
