"""The one exception a person is meant to read."""


class VmrError(Exception):
    """A mistake in the input that its owner can mend.

    The message is one sentence that names the thing and the mend. The command line prints it
    without a traceback and exits with 2; the service answers with 4xx.
    """
