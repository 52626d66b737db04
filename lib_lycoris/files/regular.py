"""Opening files that users name."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from lib_lycoris.errors import NetworkFileError, shown


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """The regular file at `path`, open for reading bytes; never a folder, nor a pipe or device, which could block or have no end.

    Raises:
        NetworkFileError: there is no such file, it is something else, or it may not be read.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise NetworkFileError(f"{shown(path)} is a folder; name the file in it, for example adapter_model.safetensors")
        if not stat.S_ISREG(mode):
            raise NetworkFileError(f"{shown(path)} is a pipe or a device, no file; name a network file")
        return open(path, "rb")
    except FileNotFoundError as error:
        raise NetworkFileError(f"{shown(path)} does not exist; check the path") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except NetworkFileError:
        raise
    except ValueError as error:  # a name with a null character
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: Exception) -> NetworkFileError:
    """The error for a file that the system refuses to read."""
    return NetworkFileError(f"{shown(path)} can't be read: {shown(getattr(error, 'strerror', None) or error)}; check the path and its permissions")
