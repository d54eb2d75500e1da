"""Comparing a stored revision with its mark: `check`, or as a process `python -m bitinglip.models.check`.

All of its files are read, which takes a while: the process tells of its progress, and can be stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from bitinglip.errors import BitingLipError, FetchFailed, ModelNotFound
from bitinglip.events.model import ModelFile
from bitinglip.models import snapshots
from bitinglip.models.digests import digests_of
from bitinglip.models.jobprocess import read_job, run
from bitinglip.models.layout import Place, place_of
from bitinglip.models.meter import Meter
from bitinglip.models.protocol import Checked, CheckJob, Line
from bitinglip.models.removal import discard


def check(cache_dir: Path, reference: str, revision: str, each: Callable[[int], None] = lambda _: None) -> Checked:
    """Read all files of a revision that is ours, and tell which are not there, or not what they should be.

    Args:
        cache_dir: The store.
        reference: The model's name.
        revision: The revision.
        each: Called with the size of every piece that was read.

    Raises:
        ModelNotFound: the revision is not ours.
        OSError: the disk does not give a file that is there.
    """
    place = place_of(cache_dir, reference, revision)
    with snapshots.in_use(cache_dir, reference, revision):
        files = _marked(place).files
        found = {file.path: _state(place, file, each) for file in files}
    return Checked(
        files=len(files),
        checked_bytes=sum(file.size_bytes for file in files if found[file.path] != "missing"),
        missing=tuple(path for path, state in found.items() if state == "missing"),
        damaged=tuple(path for path, state in found.items() if state == "damaged"),
    )


def drop_damaged(cache_dir: Path, reference: str, revision: str, damaged: Iterable[str]) -> None:
    """Remove what a check found to be damaged. The revision is one again whose fetch did not end: it brings the files.

    Raises:
        ModelNotFound: the revision is not ours.
        StoreReadOnly: the store cannot be written.
    """
    place = place_of(cache_dir, reference, revision)
    snapshots.unmark(place, _marked(place))
    for path in damaged:
        discard(place, path)


def main() -> None:
    """Do one job."""
    job = read_job(CheckJob)
    place = place_of(job.cache_dir, job.reference, job.revision)
    mark = snapshots.mark_of(place)
    run(Meter(mark.size_bytes if mark else 0), lambda meter: Line(checked=_check(job, meter)), _problem)


def _check(job: CheckJob, meter: Meter) -> Checked:
    found = check(job.cache_dir, job.reference, job.revision, meter.count)
    wrong = (*found.missing, *found.damaged)
    if wrong and job.drop_damaged:
        drop_damaged(job.cache_dir, job.reference, job.revision, wrong)
    return found


def _marked(place: Place) -> snapshots.Mark:
    mark = snapshots.mark_of(place)
    if mark is None:
        raise ModelNotFound(reference=f"{place.reference}@{place.revision}", looked_in=str(place.cache_dir))
    return mark


def _state(place: Place, file: ModelFile, each: Callable[[int], None]) -> str:
    path = place.file(file.path)
    try:
        right = path.stat().st_size == file.size_bytes and digests_of(path, file, each).fit(file)
    except FileNotFoundError:
        return "missing"
    return "fine" if right else "damaged"


def _problem(error: Exception) -> BitingLipError:
    return FetchFailed(reference="The revision", problem=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
