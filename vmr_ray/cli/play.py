"""Cut a moment out of its video, or open it in a player."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vmr_ray.cli.common import has_display
from vmr_ray.errors import VmrError
from vmr_ray.storage import is_uri

PLAYERS = ("mpv", "vlc", "ffplay")  # they can play a part of a file


def cut(video_id: str, uri: str, start: float, end: float, to: Path) -> None:
    """Cut `[start, end)` seconds of the video at `uri` into the MP4 file `to`.

    Raises:
        VmrError: the video is missing or unreadable, or the folder of `to` does not exist.
    """
    from vmr_ray.schema import Video
    from vmr_ray.video import clips
    from vmr_ray.video.local_copies import LocalCopies

    if not to.absolute().parent.is_dir():
        raise VmrError(f"--clip {to}: there is no folder {to.absolute().parent}, make it first")
    with LocalCopies(1).local(Video(video_id, uri)) as path:
        if not Path(path).is_file():
            raise VmrError(_moved(uri))
        clips.clip(path, start, end, to)


def play(video_id: str, uri: str, start: float, end: float) -> None:
    """Open the moment in mpv, VLC or ffplay. Without them, cut it out and let the desktop open the file.

    Raises:
        VmrError: nothing here can play it, or the player failed.
    """
    player = next((name for name in PLAYERS if shutil.which(name)), None)
    if player is not None and not is_uri(uri) and not Path(uri).is_file():
        raise VmrError(_moved(uri))
    if player is not None and not is_uri(uri):
        command = {
            "mpv": ["mpv", f"--start={start:.3f}", f"--end={end:.3f}", "--", uri],
            "vlc": ["vlc", f"--start-time={start:.3f}", f"--stop-time={end:.3f}", "--play-and-exit", uri],
            "ffplay": ["ffplay", "-autoexit", "-ss", f"{start:.3f}", "-t", f"{end - start:.3f}", uri],
        }[player]
    else:
        opener = "open" if sys.platform == "darwin" else "xdg-open"
        if not has_display() or not shutil.which(opener):
            raise VmrError(
                f"nothing here can play the moment: install {', '.join(PLAYERS[:-1])} or {PLAYERS[-1]}, "
                "or write it with --clip FILE.mp4"
            )
        to = Path(tempfile.mkdtemp(prefix="vmr-")) / "moment.mp4"
        cut(video_id, uri, start, end, to)
        command = [opener, str(to)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise VmrError(f"{command[0]} could not play the moment ({reason}): write it with --clip FILE.mp4")


def _moved(uri: str) -> str:
    return f"the video {uri} has been moved or deleted: index it where it is now"
