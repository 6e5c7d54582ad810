"""The folder of this user in which computed things are kept: compiled kernels, and tables beside them.

Compiled kernels are unpickled and run, so a file that somebody else put there would be somebody else's code. A folder is
used only if it belongs to this user, nobody else may write to it, and it is no symbolic link; files are looked at in the same way.
"""

import atexit
import functools
import os
import shutil
import stat
import tempfile
import uuid
import warnings
from pathlib import Path

import platformdirs

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@functools.cache
def cache_dir() -> Path:
    """The folder of compiled kernels: below `LLMGYM_CACHE_DIR`, else the platform's cache folder, else the temporary folder.

    A folder that others could have written to is passed over with a warning, and so is any `LLMGYM_CACHE_DIR` that cannot be
    used. Where none is left, a fresh folder serves this process alone.
    """
    asked = os.environ.get("LLMGYM_CACHE_DIR")
    user = f"-{os.geteuid()}" if hasattr(os, "geteuid") else ""
    candidates = [Path(asked)] if asked else []
    candidates.append(Path(platformdirs.user_cache_dir("llmgym", appauthor=False)))
    candidates.append(Path(tempfile.gettempdir()) / f"llmgym-cache{user}")
    refused = []
    found = None
    for candidate in candidates:
        root = candidate.absolute()
        why = _unusable(root) or _unusable(root / "kernels")
        if why is None:
            found = root / "kernels"
            break
        if (asked and candidate is candidates[0]) or root.is_symlink() or root.exists():
            refused.append(
                f"{'LLMGYM_CACHE_DIR=' if asked and candidate is candidates[0] else ''}{candidate}: {why}"
            )
    if found is None:
        fresh = tempfile.mkdtemp(prefix="llmgym-cache-")
        atexit.register(_remove, fresh, os.getpid())
        found = Path(fresh) / "kernels"
        found.mkdir(mode=0o700)
    for told in refused:
        warnings.warn(f"nothing is kept in {told}; compiled kernels are kept in {found}", stacklevel=2)
    return found


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked process goes on using it
        shutil.rmtree(folder, ignore_errors=True)


def _unusable(folder: Path) -> str | None:
    """Why files cannot or must not be kept in a folder, which is made if it is not there; None if they can."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        why = _not_ours(folder.lstat())
        if why is None:
            with tempfile.TemporaryFile(dir=folder):
                pass
        return why
    except FileExistsError as error:
        return f"{error.filename} is not a folder"
    except OSError as error:
        return error.strerror or str(error)


def _not_ours(status: os.stat_result, folder: bool = True) -> str | None:
    """Why something on disk may come from somebody else; None if it cannot. Windows keeps users apart by other means."""
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if not (stat.S_ISDIR(status.st_mode) if folder else stat.S_ISREG(status.st_mode)):
        return f"it is not a {'folder' if folder else 'file'}"
    if hasattr(os, "geteuid"):
        if status.st_uid != os.geteuid():
            return f"it belongs to user {status.st_uid}, not to user {os.geteuid()}"
        if status.st_mode & OTHERS_MAY_WRITE:
            return f"others may write to it (mode {stat.S_IMODE(status.st_mode):04o}; 0700 is right)"
    return None


def read(path: Path) -> bytes:
    """Content of a file that this user wrote.

    Raises:
        FileNotFoundError: there is none.
        OSError: it may come from somebody else, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0))
    with open(handle, "rb") as file:
        why = _not_ours(os.fstat(file.fileno()), folder=False)
        if why is not None:
            raise OSError(why)
        return file.read()


def write(path: Path, data: bytes) -> None:
    """Put a file into place at once, its folder made; nothing half written stays behind. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
