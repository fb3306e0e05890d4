"""Whether the hub of models can be reached: its own client retries for half a minute before it gives up."""

from __future__ import annotations

import threading
from functools import cache

_SECONDS = 5.0


@cache
def hub_answers() -> bool:
    """Whether the hub answers within seconds; asked once in a process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answers = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS)
        except Exception:  # whatever its client raises: without an answer there is no hub
            return
        answers.set()

    # In a thread, because no timeout limits the time that looking up the host's name takes.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return answers.is_set()
