"""Signals of a scheduler: the run saves at the end of the step and leaves with a code to be started again."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm

logger = logging.getLogger(__name__)

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(SystemExit):
    """A signal asked the run to leave; where nobody catches it the process ends with :data:`EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class _State:
    depth = 0
    asked = False
    at_once = False


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Inside the block SIGTERM and SIGUSR1 are noted rather than obeyed; only in the main thread, as signals are."""
    if _State.depth or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    _State.depth, _State.asked = 1, False
    try:
        yield
    finally:
        _State.depth, _State.asked = 0, False  # a process may train again
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def passed_on() -> Iterator[None]:
    """Inside the block SIGTERM and SIGUSR1 go to the processes that this one has started, which answer them."""

    def pass_on(number: int, _frame: Any) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside the block there is nothing to save: a signal, also an earlier one, ends it where it stands.

    Raises:
        Interrupted: a signal came.
    """
    leave_if_asked()
    _State.at_once = True
    try:
        yield
    finally:
        _State.at_once = False
    leave_if_asked()


def asked() -> bool:
    """Whether this process got a signal."""
    return _State.asked


def leave_if_asked() -> None:
    """Raise :class:`Interrupted` when this process got a signal."""
    if _State.asked:
        logger.warning("leaving with exit code %d, as a signal asked: start again with --resume", EXIT_CODE)
        raise Interrupted


def _note(number: int, _frame: Any) -> None:
    _State.asked = True
    if _State.at_once:
        _State.at_once = False
        leave_if_asked()


class UntilAsked:
    """Batches of an evaluation until a signal comes."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self.loader:
            if asked():
                return
            yield batch


class AgreedEvaluators(DatasetEvaluators):
    """Evaluators that score only when no process was asked to leave; all processes leave together."""

    def __init__(self, evaluators: Iterable[Any]) -> None:
        super().__init__(list(evaluators))

    def evaluate(self) -> Any:
        """As Detectron2's.

        Raises:
            Interrupted: in every process.
        """
        if any(comm.all_gather(asked())):
            logger.warning("the evaluation is left where a signal came, and begins anew with --resume")
            raise Interrupted
        return super().evaluate()
