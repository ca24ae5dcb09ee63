"""What people are told of an error, wherever it was raised: one line, and an exit code."""

from __future__ import annotations

import pickle
import re
import traceback

import duckdb

from layerrank.jobs.cluster.watch import EngineError
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.printable import without_secrets
from layerrank.operators.model.subject import ModelUnavailableError
from layerrank.storage.manifest import FormatError, SettingsConflictError
from layerrank.storage.readers.delta import LogError
from layerrank.storage.root import AddressError

DONE, FAILED, USAGE, REGRESSED = 0, 1, 2, 3


class InWorkerError(RuntimeError):
    """What a worker raised, on its way through the driver."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class WorkerDiedError(EngineError):
    """A process died again and again over one piece of work."""


def died(attempts: int, exit_code: int | None, printed: str) -> WorkerDiedError:
    """Return the error of a process that died again and again, and the last that it printed."""
    last = printed.strip().splitlines()[-1:]
    said = f"; the last it said: {last[0]}" if last else ""
    return WorkerDiedError(
        f"a worker process died {attempts} times over the same piece of work (exit code "
        f"{exit_code}; -9 is a kill, as for want of memory){said}"
    )


def travelling(error: Exception) -> Exception:
    """Return an error as it can be pickled, with its traceback; as its text where it cannot."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (whatever its constructor does)
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(error.__notes__[-1])
        return plain
    return error


_OUR_USAGE_ERRORS = (
    ConfigError,
    FormatError,
    SettingsConflictError,
    ModelUnavailableError,
    AddressError,
    LogError,
)
# A file that is not there is the user's to mend on the driver; in a worker something was lost.
_USAGE_ERRORS = (*_OUR_USAGE_ERRORS, FileNotFoundError, PermissionError, duckdb.Error)


def raised_within(told: str) -> tuple[str, str] | None:
    """Return the last error in what Ray tells that is not of its own: its name and its message."""
    line = r"^\s*(?!ray\.)(?:\w+\.)*(\w+(?:Error|Exception)): (.+)$"
    found = re.findall(line, told, re.MULTILINE)
    return found[-1] if found else None


def explain(error: BaseException, *, in_worker: bool = False) -> tuple[str, int]:
    """Return an error as one line of text, and the exit code of a command that ends with it.

    What a worker raised comes wrapped by Ray: the error itself is the cause or, where the cause is
    one of Ray's own or an actor died of it, the last other error of the traceback in the text.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and not _is_of_ray(cause):
        return explain(cause, in_worker=True)
    name, message = type(error).__name__, str(error)
    if _is_of_ray(error):
        name, message = raised_within(message) or (name, message)
    # Ray adds a paragraph of its own advice to what a worker raised.
    message = re.split(r"\nFailed to .+ after \d+/\d+ attempts", message)[0]
    # DuckDB tells what a filesystem in Python raised with the traceback before it.
    message = re.sub(r"Traceback \(most recent call last\):\n(?: .*\n)+[\w.]+: ", "", message)
    line = without_secrets(" ".join(message.split()))
    usage = _OUR_USAGE_ERRORS if in_worker else _USAGE_ERRORS
    if name in {each.__name__ for each in _OUR_USAGE_ERRORS} or isinstance(error, usage):
        return line, USAGE
    known = isinstance(error, (ValueError, OSError, RuntimeError))
    for_people = (known or name in ("ValueError", "RuntimeError")) and message
    return line if for_people else f"{name}: {line}", FAILED


def _is_of_ray(error: BaseException) -> bool:
    return type(error).__module__.startswith("ray.")
