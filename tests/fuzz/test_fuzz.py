"""A small campaign, and that the campaign finds what it is for."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for tests.fuzz, as with python -m
from tests.fuzz.campaign import KINDS, campaign, run_case, save_failures, table
from tests.fuzz.kinds import load_kinds

load_kinds()
CASES = 4000


def test_mutated_files_are_read_right_or_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDET_CACHE", str(tmp_path / "cache"))
    tallies = campaign(CASES, seed=0, folder=tmp_path)
    print(table(tallies))
    failures = [f"{name} {number}: {message}" for name, t in tallies.items() for number, message, _ in t.failures]
    assert not failures, "\n".join(failures[:5])
    for name, tally in tallies.items():
        assert tally.loaded, f"{name}: the file as it should be was not read"
        assert tally.refused or name in ("shard", "text_cache"), f"{name}: nothing was refused"


class Lies:
    """A reader that loses a line, and raises what it should not."""

    errors, named = ValueError, ("x.txt",)

    def __init__(self, folder):
        pass

    def seed(self):
        return {"x.txt": b"1\n2\n"}

    def case(self, rng):
        return {"x.txt": rng.choice([b"", b"zero\n", b"1\n2\n"])}

    def read(self, folder):
        lines = (folder / "x.txt").read_text().split()
        if not lines:
            raise ValueError("is empty")
        return [int(line) if line != "zero" else {}["zero"] for line in lines[:1]]

    def check(self, files, numbers):
        assert len(numbers) == files["x.txt"].count(b"\n")


def test_failures_are_found_told_and_repeated(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "lies", Lies)
    tallies = campaign(20, seed=3, folder=tmp_path / "work", names=["lies"])
    failures = tallies["lies"].failures
    assert len(failures) == 20 and table(tallies).splitlines()[-1].split()[-2] == "20"
    messages = "\n".join(message for _, message, _ in failures)
    assert "refused without a name" in messages and "KeyError" in messages and "not as the file says" in messages
    for path in save_failures(tallies, 3, tmp_path / "kept"):
        number = int(path.name.rsplit("-", 1)[1])
        verdict, message, files = run_case(Lies(tmp_path), "lies", 3, number, tmp_path)
        assert verdict == "failed" and files == {"x.txt": (path / "x.txt").read_bytes()}
        why = (path / "why.txt").read_text()
        assert f"--seed 3 --case {number}" in why and message[:20] in why


@pytest.mark.parametrize("name", sorted(set(KINDS)))
def test_same_seed_same_case(name, tmp_path):
    runner = KINDS[name](tmp_path)
    assert run_case(runner, name, 5, 3, tmp_path) == run_case(runner, name, 5, 3, tmp_path)
