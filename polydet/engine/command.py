"""Programs of the command line: what their user can mend is said in one sentence, without a traceback."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from omegaconf.errors import OmegaConfBaseException

from polydet.data import DatasetError
from polydet.engine.config import ConfigError
from polydet.engine.errors import RunError
from polydet.engine.evaluate import ClassMismatch
from polydet.engine.nonfinite import NonFiniteError
from polydet.engine.sentinels import SilentFailure
from polydet.model_file import ModelFileError
from polydet.text import VocabularyMismatch
from polydet.weight_files import CheckpointError

KNOWN: tuple[type[Exception], ...] = (
    ConfigError,
    DatasetError,
    CheckpointError,
    ModelFileError,
    ClassMismatch,
    VocabularyMismatch,
    SilentFailure,
    RunError,
    NonFiniteError,
    OmegaConfBaseException,
    OSError,
)


def command(main: Callable[[], object], also: tuple[type[Exception], ...] = ()) -> NoReturn:
    """Run a program and exit: with what it returns if that is a number, else with 0; with 1 and a line for its user.

    Args:
        main: the program.
        also: further exceptions whose message is for the user.
    """
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # ``| head`` has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (*KNOWN, *also) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(status if isinstance(status, int) else 0)
