"""Whole or not at all, one at a time, inside."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polydet import files
from polydet.files import (
    file_digest,
    inside,
    leftovers,
    locked,
    remove_leftovers,
    text_digest,
    whole_file,
    whole_folder,
    write_bytes,
    write_text,
)

fork = multiprocessing.get_context("fork")


def test_a_file_is_seen_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]
    write_text(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    write_bytes(path, b"\0")
    assert path.read_bytes() == b"\0"


def no_space(path):
    Path(path).write_text("half")
    raise OSError(28, os.strerror(28))


def torch_fails(path):
    Path(path).write_text("half")
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def safetensors_fails(path):
    save_file({"a": torch.zeros(1)}, path / "not a folder")


@pytest.mark.parametrize("fail", [no_space, torch_fails, safetensors_fails, lambda path: None])
def test_a_failure_names_the_file_and_keeps_the_old_one(tmp_path, fail):
    write_text(tmp_path / "results.json", "old")
    with pytest.raises(OSError, match=r"results\.json.*free some space"), whole_file(tmp_path / "results.json") as path:
        fail(path)
    assert (tmp_path / "results.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_other_errors_pass_as_they_are(tmp_path):
    for write in (whole_file, whole_folder):
        with pytest.raises(ValueError, match="mine"), write(tmp_path / "a"):
            raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_seen_when_it_is_whole_and_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "columns"
    with whole_folder(path) as folder:
        (folder / "deep").mkdir()
        (folder / "link").symlink_to("nowhere")
        (folder / "deep" / "a").write_text("1")
        assert not path.exists()
    with whole_folder(path) as folder:
        (folder / "b").write_text("2")
        assert (path / "deep" / "a").read_text() == "1"
    assert [p.relative_to(path).as_posix() for p in path.rglob("*")] == ["b"] and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="columns"), whole_folder(path) as folder:
        no_space(folder / "c")
    assert [p.name for p in path.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("has", [True, False])
def test_a_folder_of_many_files(tmp_path, monkeypatch, has):
    flushed = []
    if not has:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: None)
    monkeypatch.setattr(files, "_flush", lambda path: flushed.append(path))
    with whole_folder(tmp_path / "many") as folder:
        for i in range(100):
            (folder / str(i)).write_text(str(i))
    assert len(list((tmp_path / "many").iterdir())) == 100
    assert len(flushed) == (1 if has else 102)  # the folder around it, at least


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    path = tmp_path / "columns"
    with whole_folder(path) as folder:
        (folder / "a").write_text("old")
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(path) as folder:
        (folder / "a").write_text("new")
    assert (path / "a").read_text() == "old" and list(tmp_path.iterdir()) == [path]


def _killed(folder):
    with whole_file(folder / "model_0000001.pth") as path:
        path.write_text("half")
        with whole_folder(folder / "columns"):
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_is_known_by_name(tmp_path):
    process = fork.Process(target=_killed, args=(tmp_path,))
    process.start()
    process.join()
    (tmp_path / ".model_0000002.pth.4711.tmp").write_text("of an earlier version")
    for other in ("model_0000003.pth", ".hidden", ".mine.tmp", "a.4711.tmp"):
        (tmp_path / other).write_text("stays")
    assert len(leftovers(tmp_path)) == 3
    assert not leftovers(tmp_path, "col") and len(leftovers(tmp_path, "columns")) == 1
    assert len(remove_leftovers(tmp_path, "columns")) == 1 and len(remove_leftovers(tmp_path)) == 2
    assert len(list(tmp_path.iterdir())) == 4 and remove_leftovers(tmp_path) == []


def _count(path, times):
    for _ in range(times):
        with locked(path.with_name(".lock")):
            value = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(value + 1))


def test_one_at_a_time_though_the_lock_file_goes(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    workers = [fork.Process(target=_count, args=(path, 8)) for _ in range(2)]
    workers += [threading.Thread(target=_count, args=(path, 8)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert path.read_text() == "32" and [p.name for p in tmp_path.iterdir()] == ["count"]


def test_who_does_not_wait_is_told(tmp_path):
    with locked(tmp_path / "a" / "lock"):
        with pytest.raises(TimeoutError, match=r"lock is held by another"), locked(tmp_path / "a" / "lock", wait=0):
            pass
        assert (tmp_path / "a" / "lock").exists()
    with locked(tmp_path / "a" / "lock", wait=0):
        pass


def _hold_and_die(path):
    with locked(path):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_process_holds_nothing(tmp_path):
    process = fork.Process(target=_hold_and_die, args=(tmp_path / "lock",))
    process.start()
    process.join()
    with locked(tmp_path / "lock", wait=0):
        pass


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, example 1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "a") == text_digest("abc") == known
    (tmp_path / "a").write_bytes(b"abcd")
    assert file_digest(tmp_path / "a") == text_digest("abcd")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "a/../../b", "a\\b", "C:x", "a\0b", "."])
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(ValueError, match="inside"):
        inside(tmp_path, name)


def test_names_that_stay_in(tmp_path):
    assert inside(tmp_path, "a/./b..c/...d") == tmp_path / "a" / "b..c" / "...d"
