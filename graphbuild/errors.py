"""What users are told when something is wrong: one line that says what happened, where, and what to do.

Importing this loads nothing but the standard library.
"""

from __future__ import annotations

import errno
import os
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Something that the user can mend; its text is one line: what, where, what to do."""

    exit_code = 1


class SourceError(UserError):
    """A data set or one of its files is missing, unreadable, empty or contradicts itself."""


class OptionError(UserError):
    """Options that contradict each other, or what an earlier run recorded."""


class ArtifactError(UserError):
    """A file of a graph or run folder is missing or damaged."""


class ArtifactMismatch(ArtifactError):
    """Two artifacts that do not belong together: another encoder, data set or version."""


class ResourceError(UserError):
    """The machine cannot do it: no space, no memory, no device, a dead worker."""


def describe_os_error(error: OSError) -> str:
    """Return one line for an operating-system error, with the file and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}no space left on the device. What was finished is kept: free some space and run the same command again."
    if error.errno == errno.EFBIG:
        return (
            f"{where}the file-size limit was reached. What was finished is kept: raise it (`ulimit -f`) and run the command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}{os.strerror(error.errno)}. Check the permissions, or choose another folder."
    return f"{where}{error.strerror or error}"


def one_line(text: str) -> str:
    """Fold a message onto one line; library messages often span several."""
    return " ".join(text.split())


def visible(text: str) -> str:
    """Return text that a terminal shows instead of obeying: control characters and those that turn its direction, as escapes.

    Line ends and tabs stay. Captions and names of files are anybody's, and a terminal runs what they say.
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


_URL = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<user>[^/@\s'\"]*(?::[^@\s'\"]*)?@)?(?P<rest>[^\s'\"]*)")
_SIGNED = re.compile(r"\?[^\s'\"]*(?:sig|token|key|secret|credential|passw|auth)[^\s'\"]*", re.IGNORECASE)


def redact(text: str) -> str:
    """Replace users, passwords, keys and signed queries in URLs by `***`; for all that is printed or stored."""
    return _URL.sub(lambda url: f"{url['scheme']}{'***@' if url['user'] else ''}{_SIGNED.sub('?***', url['rest'])}", text)
