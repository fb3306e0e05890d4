"""The exceptions that a person is meant to read, and the text of every other one."""

from __future__ import annotations

import errno
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)


class VmrError(Exception):
    """A mistake in the input that the user can fix.

    The message is one sentence that names the thing and the fix. The command line prints it without a
    traceback and exits with 2; the service answers with 4xx.
    """


class FullDiskError(VmrError, OSError):
    """There is no room for what has to be written. The command line exits with 1."""

    def __str__(self) -> str:
        return str(self.strerror)


def full_disk(path: str) -> FullDiskError:
    """The error of a write to `path`."""
    sentence = f"cannot write {path} (its disk is full): make room, then do the same again"
    return FullDiskError(errno.ENOSPC, sentence)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, also in a Ray worker or a training process."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or _training_failure(error) or error.__cause__


def _training_failure(error: BaseException) -> BaseException | None:
    """What Ray Train's error is about: an error of a training process, or of the process that leads them."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    return next(iter(failures.values()), getattr(error, "controller_failure", None))


def is_full_disk(error: BaseException) -> bool:
    """Whether a full disk has led to an error."""
    return any(isinstance(cause, OSError) and cause.errno in _FULL for cause in causes(error))


def error_message(error: BaseException) -> str:
    """The error's message. For errors raised in a Ray worker only the first line, because Ray appends the
    traceback."""
    cause = getattr(error, "cause", None)
    return str(error) if cause is None else str(cause).partition("\n")[0]


def one_line(error: BaseException, limit: int = 500) -> str:
    """The error's message on one line of at most `limit` characters; its class if it has no message."""
    return " ".join(error_message(error).split())[:limit] or type(error).__name__
