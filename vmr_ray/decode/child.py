"""The decoder's process: requests on stdin, frames on stdout, complaints on stderr.

A request is one line, a JSON string: the path. The answer is messages, each a big-endian uint32,
that many bytes of JSON, and `n` frames of raw RGB. The last has `error` or `end`. The parent's end
of the pipe closing ends the process, also in the middle of a video.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import struct
import sys
import threading
from typing import Any, BinaryIO

from vmr_ray.decode.sniff import refusal


def _send(out: BinaryIO, message: dict[str, Any], frames: bytes | memoryview = b"") -> None:
    header = json.dumps(message).encode()
    out.write(struct.pack(">I", len(header)) + header)
    out.write(frames)
    out.flush()


def _answer(out: BinaryIO, path: str, options: dict[str, Any]) -> None:
    from vmr_ray.decode.reader import read_frames, read_index
    from vmr_ray.decode.sampling import Sampling

    stage, done = "sniff", 0
    try:
        if reason := refusal(path):
            return _send(out, {"error": reason, "stage": stage})
        stage = "open"
        index = read_index(path)
        stage = "decode"
        sampling = Sampling.parse(options["sampling"])
        plan = sampling.plan(index.starts, index.ends, index.keys)
        size = options["width"], options["height"]
        partial, duration = index.partial, float(plan.edges[-1] - plan.edges[0])
        for frames, damaged in read_frames(
            index, sampling, plan, *size, options["chunk_frames"], options["threads"]
        ):
            n, partial = len(frames), partial or damaged
            message = {
                "n": n,
                "times": plan.times[done : done + n].tolist(),
                "edges": plan.edges[done : done + n + 1].tolist(),
                "duration": duration,
                "partial": partial,
            }
            if n:
                _send(out, message, frames.data)
            done += n
        if not done:
            return _send(out, {"error": f"no frame of {path} can be decoded", "stage": stage})
        _send(out, {"end": True, "partial": partial})
    except BrokenPipeError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        _send(out, {"error": f"{path}: {' '.join(reason.split())[:300]}", "stage": stage})


def main() -> None:
    options = json.loads(sys.argv[1])
    limit = int(options["memory_gb"] * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Ctrl-C reaches the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Native libraries that print must not print into the stream of frames.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        path = requests.get()
        os.ftruncate(2, 0)
        _answer(out, path, options)


if __name__ == "__main__":
    main()
