"""Who may write a run: a lock of the operating system on a file, which one holder has at a time, in this process or another.

The system frees it when its holder ends, however that ended, so nothing need be renewed and nothing grows stale: what is locked
is worked on. A lock belongs to the handle that took it: a second handle of the same process, even of the same thread, is
refused as another process is, and a forked child does not share its parent's.

On one machine this holds on every local file system. Between hosts it holds where the file system passes `flock` on: NFS 4, NFS
3 with a lock daemon, SMB, CephFS, GPFS, Lustre mounted with `flock`. Where locks stay local (NFS with `nolock` or `local_lock`,
Lustre with `localflock`, sshfs) a reader on another host sees a run in work as if nobody had it, and a worker there would begin
it a second time: there, have the workers on one host only, and resume a run only where it was begun. A file system without any
locks is refused with a sentence.
"""

import errno
import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# A reader looks by a shared lock of some microseconds, which a taker waits out.
PATIENCE_SECONDS = 0.5
_SIGNED_BYTES = 128  # more than a process's number and the longest name of a host take
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


class TakenError(Exception):
    """Another holder has the lock, or somebody copies what it guards."""


def take(path: Path, *, waits: bool = True) -> FileLock:
    """Lock `path`, a file that need not be there. Raises `TakenError`, and `OSError` where a file cannot be locked.

    `waits`: also for a holder, who may be about to let go. Whoever has other work to look at does without.
    """
    # Released by the thread that ends the work, not by the one that queued it.
    lock = FileLock(path, thread_local=False, preserve_lock_file=True, on_acquired=_sign)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=0.01, cancel_check=None if waits else lambda: is_taken(path))
    except Timeout:
        raise TakenError from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise OSError(error.errno, "its file system has no locks, which keep two workers from one run", str(path)) from None
        raise
    return lock


def _sign(descriptor: int) -> None:
    # As long as any other, so that nothing need be cut off: ext4 writes a file that is cut to the disk, in some 15 ms.
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".ljust(_SIGNED_BYTES).encode(), 0)
    # Each run that waits keeps a file open, and a queue may be longer than the number that a process may have at first.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and descriptor > soft // 2:
        more = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))


def is_taken(path: Path) -> bool:
    """Whether somebody holds the lock. Writes nothing, and two who look do not see each other."""
    try:
        with shared(path):
            return False
    except TakenError:
        return True


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Nobody can take the lock until the block ends; others can share it. Raises `TakenError`."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):  # so nobody ever took it
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TakenError from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # where there are none, nobody can have taken one
                raise
        yield


def holder(path: Path) -> str:
    """`process 123 on host` of who took the lock last."""
    try:
        return path.read_text().rstrip()
    except OSError:
        return ""
