"""A program whose disk is slow: each write and sync of a file waits for as long as another file says.

    python slowdisk.py CONTROL PROGRAM ARGUMENT...

CONTROL has the seconds that each one takes, one after the other, as a disk does them; it is read again and again, so
that a disk becomes slow, stuck (`inf`) and quick again while the program runs. The process becomes the program. A
child of it is told by the kernel of each such call, and lets it go on (seccomp_unotify(2)); so it needs Linux, and no
rights. A program without a C library, as nats-server is, cannot be slowed down from within.

Only `pwrite` and `fsync` are: nats-server writes messages by them, and nothing that it sends.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import platform
import select
import shlex
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

CALLS = {"x86_64": (0xC000003E, 317, (18, 74, 75)), "aarch64": (0xC00000B7, 277, (68, 82, 83))}
"""By machine: its name in seccomp(2), and the numbers of `seccomp`, and of `pwrite64`, `fsync` and `fdatasync`."""
NO_NEW_PRIVS = 38
SET_MODE_FILTER, GET_ACTION_AVAIL, NEW_LISTENER = 1, 2, 8
USER_NOTIF, ALLOW = 0x7FC00000, 0x7FFF0000
RECEIVE, SEND = 0xC0502100, 0xC0182101
NOTIFICATION_BYTES = 80
GO_ON = 1
LOOK_S = 0.02
"""How soon a call hears that the disk is quick again."""
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_AT, MACHINE_AT = 0, 4


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


class SlowDisk:
    """A disk that a test makes slow, for the programs that it puts on it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._control = folder / "seconds"
        self.takes(0)

    def takes(self, seconds: float) -> None:
        """Have each write take so long from now on; those that have lasted as long are done."""
        new = self._control.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._control)

    def holds(self, program: Path) -> Path:
        """Return a program of the same name that does the same, on this disk."""
        script = self._folder / program.name
        command = shlex.join([sys.executable, str(Path(__file__)), str(self._control), str(program)])
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o700)
        return script


def is_supported() -> bool:
    """Tell whether this system can have such a disk."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return False
    action = ctypes.c_uint32(USER_NOTIF)
    number = CALLS[platform.machine()][1]
    return ctypes.CDLL(None).syscall(number, GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0


def _listen() -> int:
    """Have the kernel tell of this process's calls from now on; returns where it does."""
    machine, seccomp, numbers = CALLS[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    count = len(numbers)
    steps = [
        (LOAD, 0, 0, MACHINE_AT),
        (JUMP_IF_EQUAL, 0, count + 1, machine),
        (LOAD, 0, 0, NUMBER_AT),
        *[(JUMP_IF_EQUAL, count - place, 0, number) for place, number in enumerate(numbers)],
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, USER_NOTIF),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    found = libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    if found == 0:
        found = libc.syscall(seccomp, SET_MODE_FILTER, NEW_LISTENER, ctypes.byref(_Filter(len(steps), code)))
    if found < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return found


class _Disk:
    """Serves the calls one after the other."""

    def __init__(self, listener: int, control: Path) -> None:
        self._listener = listener
        self._control = control
        self._calls: SimpleQueue[int] = SimpleQueue()
        Thread(target=self._serve, daemon=True).start()

    def run(self) -> None:
        """Take calls until there is nobody left who makes any."""
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        while not any(event & select.POLLHUP for _, event in poller.poll()):
            told = bytearray(NOTIFICATION_BYTES)
            with suppress(OSError):  # who made the call was killed
                fcntl.ioctl(self._listener, RECEIVE, told)
                self._calls.put(int.from_bytes(told[:8], sys.byteorder))

    def _serve(self) -> None:
        while True:
            call, began = self._calls.get(), time.monotonic()
            while (left_s := began + float(self._control.read_text()) - time.monotonic()) > 0:
                time.sleep(min(left_s, LOOK_S))  # sleep-ok: so slow is the disk
            with suppress(OSError):
                fcntl.ioctl(self._listener, SEND, struct.pack("=QqiI", call, 0, 0, GO_ON))


def main() -> None:
    """Become the program, after a child was made that is its disk."""
    control, *command = sys.argv[1:]
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.fork() == 0:
        here.close()
        _, told, _, _ = there.recvmsg(1, socket.CMSG_SPACE(4))
        there.close()
        _Disk(struct.unpack("i", told[0][2])[0], Path(control)).run()
        os._exit(0)
    there.close()
    listener = _listen()
    here.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
    os.close(listener)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
