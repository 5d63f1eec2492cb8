"""Rules of the house that no linter knows: small rooms, thin configs, no traces of one machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE, MAX_FUNCTION, MAX_CONFIG, MAX_REPEATED = 400, 60, 25, 6
PACKAGES = ("polydet", "scaledet", "metr", "codetr", "aligndet", "detclipv2", "tools")


def tracked(*patterns: str) -> list[Path]:
    output = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in output.stdout.splitlines() if (ROOT / name).is_file()]


def test_files_and_functions_are_small():
    long = []
    for path in tracked(*(f"{package}/**.py" for package in PACKAGES)):
        text = path.read_text()
        if text.count("\n") > MAX_FILE:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef) or is_kernel(node):
                continue
            if node.end_lineno - node.lineno + 1 > MAX_FUNCTION + docstring(node):
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not long, "\n".join(long)


def is_kernel(node: ast.FunctionDef) -> bool:
    """A Triton kernel is one program; only what it calls can be split off."""
    return any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)


def docstring(node: ast.FunctionDef) -> int:
    first = node.body[0]
    is_doc = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return first.end_lineno - first.lineno + 1 if is_doc else 0


def test_rows_of_tables_are_thin_and_say_which_row_they_are():
    papers = ("scaledet", "metr", "codetr", "aligndet", "detclipv2")
    files = tracked(*(f"configs/{paper}/**.py" for paper in papers))
    rows = [path for path in files if "common" not in path.parts]
    thick = [str(p.relative_to(ROOT)) for p in rows if p.read_text().count("\n") > MAX_CONFIG]
    unnamed = [
        str(p.relative_to(ROOT))
        for p in rows
        if not re.search(r"table|figure|section|sec\.|appendix", p.read_text().split("\n")[0], re.IGNORECASE)
    ]
    for path in rows:
        table = re.match(r"(?:supp_)?(table|figure)(\d+)_", path.name)
        line = path.read_text().split("\n")[0]
        if table and not re.search(rf"{table[1]}s? (\S+, )*(\S+ and )?{table[2]}\b", line, re.IGNORECASE):
            unnamed.append(f"{path.relative_to(ROOT)} is of {table[1]} {table[2]}")
    assert not thick and not unnamed, f"more than {MAX_CONFIG} lines: {thick}; first line names no table: {unnamed}"


def code_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that hold statements: no docstrings, comments, imports or closing brackets alone."""
    text = path.read_text()
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, node.end_lineno + 1))
    lines = [(n, line.split("  #")[0].strip()) for n, line in enumerate(text.splitlines(), 1) if n not in left_out]
    return [(n, line) for n, line in lines if line.strip("()[]{},") and not line.startswith("#")]


def repeats(files: list[Path], longest: int) -> list[str]:
    """Places where more than `longest` lines of code in a row stand in two files."""
    seen: dict[tuple[str, ...], tuple[Path, int]] = {}
    found = []
    for path in files:
        lines = code_lines(path)
        for start in range(len(lines) - longest):
            window = lines[start : start + longest + 1]
            other, number = seen.setdefault(tuple(text for _, text in window), (path, window[0][0]))
            if other != path:
                found.append(f"{path.name}:{window[0][0]} repeats {other.name}:{number}")
    return found


def test_no_config_repeats_another():
    found = repeats(tracked("configs/**.py"), MAX_REPEATED)
    assert not found, "\n".join(found)


def test_a_repetition_would_be_found(tmp_path):
    lines = [f"model.part_{i} = {i}" for i in range(7)]
    (tmp_path / "a.py").write_text("\n".join(['"""A."""', "import torch", *lines]))
    (tmp_path / "b.py").write_text("\n".join(['"""B."""', "x = 1", *lines[:3], "", "# said otherwise", *lines[3:]]))
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    assert repeats(files, 6) == ["b.py:3 repeats a.py:3"] and not repeats(files, 7)


def test_nothing_unfinished_is_promised():
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b|pytest\.mark\.(skip|xfail)\b|pytest\.skip\(")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked("*.py")
        if path != Path(__file__).resolve() and "build_support" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_cuda_calls_and_no_device_at_import():
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked(*(f"{package}/**.py" for package in PACKAGES[:-1]))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ".cuda()" in line
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["uv.lock"])
def test_files_that_name_hosts_stay_out(name):
    assert not tracked(name)
    assert name in (ROOT / ".gitignore").read_text().split()
