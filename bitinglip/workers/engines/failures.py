"""What an engine's exception means for a task: a value that the retry rule can read."""

from __future__ import annotations

from pydantic import ValidationError

from bitinglip.events.task import Failure

MESSAGE_CHARACTERS = 2000

_OUT_OF_MEMORY_CLASSES = {"OutOfMemoryError", "AcceleratorOutOfMemoryError"}
_OUT_OF_MEMORY_WORDS = ("can't allocate memory", "out of memory")
_DEVICE_FAULTS = ("CUDA error", "HIP error", "XPU error")


class BadInputError(Exception):
    """The task's input cannot be run on this model; the message says why, to the caller."""


class LoadError(Exception):
    """The model could not be loaded from its folder; the message names the model, not the folder."""


class UnusableModelError(Exception):
    """The model cannot be loaded by this engine, here or elsewhere; the message says why, to the caller."""


def run_failure(error: Exception) -> Failure:
    """Return what an exception in a run means."""
    if isinstance(error, BadInputError):
        return Failure(kind="bad_input", message=_cut(str(error)), retryable=False)
    if isinstance(error, ValidationError):
        return Failure(kind="bad_input", message=_cut(first_problem(error)), retryable=False)
    kind = (
        "out_of_memory" if is_out_of_memory(error) else "engine_crashed" if is_device_fault(error) else "engine_error"
    )
    return Failure(kind=kind, message=described(error), retryable=True)


def load_failure(error: Exception) -> Failure:
    """Return what an exception in a load means: another try may help, unless the model itself is not one for us."""
    known = isinstance(error, UnusableModelError | LoadError)
    message = _cut(str(error)) if known else described(error)
    return Failure(kind="load_failed", message=message, retryable=not isinstance(error, UnusableModelError))


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether the device (or the machine) had no room; torch's own classes are known by name, not imported."""
    if isinstance(error, MemoryError) or type(error).__name__ in _OUT_OF_MEMORY_CLASSES:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY_WORDS)


def is_device_fault(error: Exception) -> bool:
    """Tell whether a card has failed in a way (illegal access, lost from the bus) that all later calls meet as well."""
    if is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or str(error).startswith(_DEVICE_FAULTS)


def described(error: Exception) -> str:
    """Return an exception in one bounded text."""
    return _cut(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def first_problem(error: ValidationError) -> str:
    """Return the first thing that a validation found wrong, with where it is; never the input itself."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "params"
    return f"{where}: {first['msg']}"


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 1] + "…"
