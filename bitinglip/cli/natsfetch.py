"""Fetching nats-server: the official release with its checksum, else Debian's package with its signature.

Nothing is installed into the system: the binary goes into the cache of this project.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from bitinglip.errors import ServerBinaryMissing

RELEASE = "v2.15.1"
RELEASES = "https://github.com/nats-io/nats-server/releases/download"
SUITE = "forky"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CONNECT_S = 10
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

Say = Callable[[str], None]


def fetch(target: Path, say: Say) -> None:
    """Fetch the binary to `target`, whole or not at all.

    Raises:
        ServerBinaryMissing: no source worked; it says what each one answered.
    """
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bitinglip-fetch-") as scratch:
        for name, source in (("the official release", from_release), ("Debian's package", from_debian)):
            say(f"fetching nats-server from {name} …")
            try:
                binary = source(Path(scratch))
            except (OSError, ValueError, KeyError, subprocess.SubprocessError, tarfile.TarError) as error:
                problems.append(f"{name}: {_told(error)}")
                say(f"  not from there: {_told(error)}")
                continue
            place(binary, target)
            return
    raise ServerBinaryMissing(looked_in="; ".join(problems))


def from_release(scratch: Path, release: str = RELEASE) -> Path:
    """Fetch the release's archive, check it against the release's checksums, and unpack the binary."""
    system = platform.system().lower()
    stem = f"nats-server-{release}-{system}-{ARCHITECTURES[platform.machine().lower()]}"
    sums = _download(f"{RELEASES}/{release}/SHA256SUMS").decode()
    wanted = next(line.split()[0] for line in sums.splitlines() if line.endswith(f"{stem}.tar.gz"))
    archive = _download(f"{RELEASES}/{release}/{stem}.tar.gz")
    if hashlib.sha256(archive).hexdigest() != wanted:
        raise ValueError("the archive's checksum is wrong")
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        member = tar.extractfile(f"{stem}/nats-server")
        if member is None:
            raise ValueError("the archive holds no nats-server")
        (scratch / "nats-server").write_bytes(member.read())
    return scratch / "nats-server"


def from_debian(scratch: Path, suite: str = SUITE) -> Path:
    """Fetch Debian's package with apt, which checks the signature, and unpack it; apt's own state is not touched."""
    if shutil.which("apt-get") is None or not KEYRING.is_file():
        raise ValueError("this is no Debian with apt")
    root = scratch / "apt"
    for folder in ("lists/partial", "archives/partial", "unpacked"):
        (root / folder).mkdir(parents=True)
    mirror = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], root).splitlines()[0]
    (root / "suite.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n", "utf-8")
    apt = ["apt-get", "-q", *_apt_options(root)]
    _run([*apt, "update"], root)
    _run([*apt, "download", "nats-server"], root)
    (package,) = root.glob("nats-server_*.deb")
    _run(["dpkg", "-x", str(package), str(root / "unpacked")], root)
    return next(
        path for path in (root / "unpacked").rglob("nats-server") if path.is_file() and os.access(path, os.X_OK)
    )


def _apt_options(root: Path) -> list[str]:
    values = {
        "Dir::Etc::sourcelist": root / "suite.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": root / "lists",
        "Dir::Cache": root,
        "Dir::Cache::archives": root / "archives",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [part for name, value in values.items() for part in ("-o", f"{name}={value}")]


def _run(command: list[str], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True).stdout


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=CONNECT_S) as answer:  # noqa: S310  (the address is a constant)
        return answer.read()


def place(binary: Path, target: Path) -> None:
    """Put the binary in place in one step, so that two fetches at once do no harm."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.copyfile(binary, part)
    part.chmod(0o755)
    part.replace(target)


def _told(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
