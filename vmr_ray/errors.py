"""The one exception a person is meant to read."""


class VmrError(Exception):
    """A mistake in the input that its owner can mend.

    The message is one sentence that names the thing and the mend. The command line prints it
    without a traceback and exits with 2; the service answers with 4xx.
    """


def told(error: BaseException) -> str:
    """What `error` says; of one that a Ray worker raised its first line, for Ray adds its traceback to it."""
    cause = getattr(error, "cause", None)
    return str(error) if cause is None else str(cause).partition("\n")[0]
