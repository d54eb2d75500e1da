"""What an engine's exception means for a task: a value that the retry rule can read."""

from __future__ import annotations

from bitinglip.events.task import Failure, FailureKind

MESSAGE_CHARACTERS = 2000


class BadInputError(Exception):
    """The task's input cannot be run on this model; the message says why, to the caller."""


class UnusableModelError(Exception):
    """The model's folder cannot be loaded by this engine."""


def failure_of(error: Exception, kind: FailureKind) -> Failure:
    """Return what an exception means; `kind` is for those that mean nothing in particular."""
    message = (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)[:MESSAGE_CHARACTERS]
    match error:
        case BadInputError():
            return Failure(kind="bad_input", message=str(error), retryable=False)
        case UnusableModelError():
            return Failure(kind="load_failed", message=str(error), retryable=True)  # another worker may have it whole
        case _ if is_out_of_memory(error):
            return Failure(kind="out_of_memory", message=message, retryable=True)
        case _:
            return Failure(kind=kind, message=message, retryable=True)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether the device (or the machine) had no room; torch's own class is known by name, not imported."""
    return isinstance(error, MemoryError) or type(error).__name__ in {"OutOfMemoryError", "AcceleratorOutOfMemoryError"}
