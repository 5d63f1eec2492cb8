"""What can happen to a run; see `benchmarks/faults.py`."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.fault_runs import MODELS, NAMED, ROOT, STEPS, Campaign, before, in_child
from polydet import files, model_zoo
from polydet.engine import distributed, run, stopping
from polydet.engine.trainer import Trainer

TOOL = ROOT / "tools" / "lazyconfig_train_net.py"
READ = ("config.yaml", "last_checkpoint", "model_0000001.pth", "model_0000002.pth", "metrics.json", "log.txt")
LEFT = ("model.safetensors", "model_final.pth", "model_best.pth", "DONE", "results.json", "last_checkpoint")


class Case:
    """One fault: ``outcome`` is "equal", "refused" or what is wrong."""

    def __init__(self, campaign: Campaign, seed: int, only: str, restart: bool) -> None:
        self.campaign, self.draw, self.restart = campaign, random.Random(seed), restart
        self.kind = only or self.draw.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])[0]
        self.model = self.draw.choice(MODELS)
        self.folder = campaign.work / f"case_{seed}"
        self.detail = ""
        self.restarted = False

    def __call__(self) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        outcome = FAULTS[self.kind][1](self)
        if outcome in ("equal", "refused"):
            shutil.rmtree(self.folder, ignore_errors=True)
        return outcome

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    def start_from(self, name: str) -> None:
        shutil.copytree(self.campaign.work / f"{self.model}_{name}", self.run_folder)

    def train(self, resume: bool, hook: Callable[[], None] = lambda: None) -> tuple[int, str]:
        def call() -> None:
            hook()
            run(self.campaign.config(self.model, self.run_folder), resume=resume)

        return in_child(call, self.folder / f"{'resume' if resume else 'train'}.log")

    def again(self) -> str:
        """``--resume`` of what the fault left: by the real command in a new process for some."""
        if self.restart:
            self.restarted = True
            command = [sys.executable, TOOL, "--config-file", self.campaign.work / f"{self.model}.yaml", "--resume"]
            done = subprocess.run(
                [*map(str, command), f"train.output_dir={self.run_folder}"], capture_output=True, text=True, check=False
            )
            code, text = done.returncode, done.stdout + done.stderr
        else:
            code, text = self.train(True)
        return self.judge(code, text)

    def judge(self, code: int, text: str, needle: str = "") -> str:
        if code == 0:
            different = self.campaign.is_equal(self.model, self.run_folder)
            if different == "metrics.json" and "metrics.json is not what the run wrote" in text:
                return "refused"
            return f"ended with other {different}" if different else "equal"
        return refused(code, text, needle)


def refused(code: int, text: str, needle: str = "") -> str:
    found = [line for line in text.splitlines() if line.startswith(("NAMED ", "RAW ", *NAMED))]
    last = found[-1] if found else ""
    tagged = last.startswith("NAMED ")  # by `in_child`; the command prints no traceback with what it names
    if (tagged or (last.startswith(NAMED) and "Traceback" not in text)) and needle in text:
        return "refused"
    return f"code {code}: {(last or text[-300:]).strip()[:300]}"


def spoil(path: Path, draw: random.Random) -> str:
    """Flip bits of a file, or cut it."""
    data = bytearray(path.read_bytes())
    if draw.random() < 0.25 or not data:
        size = draw.randrange(len(data)) if data else 0
        path.write_bytes(data[:size])
        return f"cut to {size} bytes"
    places = [draw.randrange(len(data)) for _ in range(draw.choice((1, 1, 1, 3, 64)))]
    for place in places:
        data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return f"{len(places)} bits flipped"


def file_of_killed_run(case: Case) -> str:
    case.start_from("killed")
    path = case.run_folder / case.draw.choice([name for name in READ if (case.run_folder / name).exists()])
    case.detail = f"{path.name}: {spoil(path, case.draw)}"
    return case.again()


def file_of_finished_run(case: Case) -> str:
    """Evaluated again, opened in an application, and started again with ``--resume``."""
    case.start_from("whole")
    path = case.run_folder / case.draw.choice(LEFT)
    case.detail = f"{path.name}: {spoil(path, case.draw)}"
    use = case.draw.choice(("eval", "zoo", "resume"))
    whole = case.campaign.work / f"{case.model}_whole"

    def call() -> None:
        if use == "eval":
            run(case.campaign.config(case.model, case.run_folder), eval_only=True)
        elif use == "resume":
            run(case.campaign.config(case.model, case.run_folder), resume=True)
        else:
            expected = torch.load(whole / "model_final.pth", weights_only=True)["model"]
            found = model_zoo.get(case.run_folder).state_dict()
            assert all(torch.equal(value, found[key]) for key, value in expected.items()), "other weights"

    code, text = in_child(call, case.folder / "use.log")
    if code == 0 and use != "eval":
        return "equal"
    if code == 0:
        same = (whole / "results.json").read_bytes() == (case.run_folder / "results.json").read_bytes()
        return "equal" if same else "another result"
    return refused(code, text)


def data_file(case: Case) -> str:
    """A picture or annotation file that is cut or gone: named, in the log or as an error."""
    data = case.folder / "datasets"
    shutil.copytree(case.campaign.data, data)
    path = case.draw.choice(sorted(p for p in data.rglob("*") if p.suffix in (".jpg", ".json")))
    gone = case.draw.random() < 0.3
    if gone:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: case.draw.randrange(path.stat().st_size - 2)])
    case.detail = f"{path.parent.name}/{path.suffix}: {'gone' if gone else 'cut'}"
    code, text = case.train(False, lambda: os.environ.update(DETECTRON2_DATASETS=str(data)))
    if code == 0:
        said = path.name in text or case.campaign.is_equal(case.model, case.run_folder) == ""
        return ("refused" if path.name in text else "equal") if said else "not said"
    return refused(code, text, path.name)


def kill_at_write(case: Case) -> str:
    number = case.draw.randrange(1, 60)
    case.detail = f"at flush {number}"
    code, text = case.train(
        False, lambda: before(files, "_flush", number, lambda: os.kill(os.getpid(), signal.SIGKILL))
    )
    return case.again() if code == -signal.SIGKILL else case.judge(code, text)


def kill_at_any_time(case: Case) -> str:
    delay = case.draw.uniform(0.05, 4.0)
    case.detail = f"after {delay:.2f} s"

    def hook() -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, delay)

    code, text = case.train(False, hook)
    return case.again() if code == -signal.SIGKILL else case.judge(code, text)


def full_disk(case: Case) -> str:
    """A write fails; then there is space again."""
    if case.draw.random() < 0.5:
        number = case.draw.randrange(1, 60)
        case.detail = f"no space at flush {number}"

        def fail() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        code, text = case.train(False, lambda: before(files, "_flush", number, fail))
    else:
        size = case.draw.randrange(2_000, 900_000)
        case.detail = f"files of at most {size} bytes"

        def hook() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        code, text = case.train(False, hook)
    if code == 0:
        return case.judge(code, text)
    first = refused(code, text, str(case.run_folder))
    return case.again() if first == "refused" else first


def stopped(case: Case) -> str:
    """SIGTERM or SIGUSR1 in warm-up, a step, the evaluation or a save; to the process or to all with its workers."""
    number = case.draw.choice((signal.SIGTERM, signal.SIGUSR1))
    group = case.draw.random() < 0.5
    names = run.__wrapped__.__globals__
    owner, name, most = case.draw.choice(
        [
            (names, "build_model", 1),
            (Trainer, "run_step", STEPS),
            (sys.modules["polydet.engine.evaluate"], "answer_by_size", 4),
            (files, "_flush", 40),
            (stopping, "leave_if_asked", 3),
        ]
    )
    call = case.draw.randrange(1, most + 1)
    case.detail = f"{number.name} at {name} {call}{' to the group' if group else ''}"

    def send() -> None:
        if not group:
            os.kill(os.getpid(), number)
        elif not (other := os.fork()):  # from outside: workers obey the run itself
            signal.signal(number, signal.SIG_IGN)
            os.killpg(os.getpgrp(), number)
            os._exit(0)
        else:
            os.waitpid(other, 0)

    def hook() -> None:
        if isinstance(owner, dict):
            original = owner[name]
            owner[name] = lambda *args: (send(), original(*args))[1]
        else:
            before(owner, name, call, send)

    code, text = case.train(False, hook)
    if code != stopping.EXIT_CODE:
        return case.judge(code, text)
    return case.again()


def dead_worker(case: Case) -> str:
    step = case.draw.randrange(1, STEPS + 1)
    case.detail = f"step {step}"

    def kill() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    code, text = case.train(False, lambda: before(Trainer, "run_step", step, kill))
    if code == 0:
        return case.judge(code, text)
    first = refused(code, text, "worker")
    return case.again() if first == "refused" else first


def dead_process(case: Case) -> str:
    """One of two processes dies; the other ends with a sentence, and both go on."""
    step = case.draw.randrange(2, STEPS + 1)
    victim = case.draw.randrange(2)
    case.detail = f"process {victim} at step {step}"

    def both(folder: Path, resume: bool, death: int) -> list[tuple[int, str]]:
        def member(rank: int) -> None:
            address = f"file://{folder}.{int(resume)}.{death}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
            distributed._make_local_group(2, 2)
            if rank == victim and death:
                before(Trainer, "run_step", death, lambda: os.kill(os.getpid(), signal.SIGKILL))
            run(case.campaign.config(case.model, folder), resume=resume)

        logs = [case.folder / f"{folder.name}.{rank}.log" for rank in (0, 1)]
        first = os.fork()
        if not first:
            code, _ = in_child(lambda: member(1), logs[1])
            os._exit(code % 256)
        result = in_child(lambda: member(0), logs[0])
        code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        return [result, (code, logs[1].read_text(errors="replace"))]

    whole = case.campaign.work / f"{case.model}_two"
    if not whole.exists():
        both(whole, False, 0)
    ended = both(case.run_folder, False, step)
    other = ended[1 - victim]
    if refused(*other) != "refused":
        return refused(*other)
    if any(code for code, _ in both(case.run_folder, True, 0)):
        return "the resumed processes fail"
    one, two = (torch.load(p / "model_final.pth", weights_only=True)["model"] for p in (whole, case.run_folder))
    return "equal" if all(torch.equal(value, two[key]) for key, value in one.items()) else "ended with other weights"


def nan(case: Case) -> str:
    step = case.draw.randrange(1, STEPS + 1)
    value = case.draw.choice((float("nan"), float("inf")))
    place = case.draw.random()
    case.detail = f"{value} at step {step}"

    def hook() -> None:
        original, calls = Trainer.run_step, []

        def poisoned(trainer: Any) -> None:
            calls.append(0)
            if len(calls) == step:
                trained = [p for p in trainer.raw_model.parameters() if p.requires_grad]
                with torch.no_grad():
                    trained[int(place * len(trained))].view(-1)[0] = value
            original(trainer)

        Trainer.run_step = poisoned

    code, text = case.train(False, hook)
    if code == 0:
        return "not noticed"
    found = refused(code, text, "replay_step.py")
    return found if list(case.run_folder.glob("nonfinite/*/model.pth")) else f"no saved step: {found}"


def second_run(case: Case) -> str:
    """Another run in the folder of one at work."""
    got = case.folder / "second.txt"

    def hook() -> None:
        def second() -> None:
            code, text = in_child(
                lambda: run(case.campaign.config(case.model, case.run_folder), resume=True), case.folder / "second.log"
            )
            got.write_text(refused(code, text, "in use by process"))

        before(Trainer, "run_step", 2, second)

    case.detail = "at step 2"
    code, text = case.train(False, hook)
    first = case.judge(code, text)
    return first if got.read_text() == "refused" else f"second run: {got.read_text()}"


FAULTS: dict[str, tuple[float, Callable[[Case], str]]] = {
    "file of a killed run": (30, file_of_killed_run),
    "file of a finished run": (25, file_of_finished_run),
    "data file": (8, data_file),
    "kill at a write": (12, kill_at_write),
    "kill at any time": (5, kill_at_any_time),
    "full disk": (8, full_disk),
    "signal": (10, stopped),
    "dead worker": (3, dead_worker),
    "dead process": (1, dead_process),
    "NaN": (5, nan),
    "second run": (1, second_run),
}
RESTARTS = ("file of a killed run", "kill at a write", "kill at any time", "full disk", "signal", "dead worker")
