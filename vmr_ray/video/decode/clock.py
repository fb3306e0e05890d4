"""The clock of a transport stream that was spliced together. Runs inside a decoding process."""

from __future__ import annotations

from collections.abc import Iterator

import av

# As in ffmpeg: longer steps, and steps back, are jumps of the clock and not gaps in the recording.
_LONGEST_STEP, _LONGEST_STEP_BACK = 10.0, 0.1
# Only these formats promise no continuous clock.
_FORMATS = {"mpegts", "mpeg"}


class Clock:
    """Follows one stream's timestamps. After a jump the stream continues where it was, as in players.

    Attributes:
        offset: what is added to the timestamps at present, in the stream's time base.
        jumps: how often the clock has jumped.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.stream.Stream, offset: int = 0):
        second = 1 / float(stream.time_base or 1)
        self._forward, self._back = round(_LONGEST_STEP * second), round(_LONGEST_STEP_BACK * second)
        self._may_jump = not _FORMATS.isdisjoint(container.format.name.split(","))
        self._last: int | None = None
        self._step = 0
        self.offset = offset
        self.jumps = 0

    def packets(
        self, container: av.container.InputContainer, stream: av.stream.Stream
    ) -> Iterator[av.Packet]:
        """The stream's packets on this clock; they end where the file cannot be read further."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                return
            if packet is None:
                return
            if packet.size:
                self.follow(packet)
            yield packet

    def follow(self, packet: av.Packet) -> None:
        """Move the timestamps of the stream's next packet by the jumps so far."""
        if not self._may_jump:
            return
        if packet.dts is not None:
            self._check(packet.dts, packet.duration or 0)
            packet.dts += self.offset
        if packet.pts is not None:
            packet.pts += self.offset

    def _check(self, stamp: int, duration: int) -> None:
        if self._last is not None:
            expected = self._last + self._step
            now = stamp + self.offset
            if now > expected + self._forward or now < self._last - self._back:
                self.jumps += 1
                self.offset += expected - now
            elif not duration:
                duration = max(0, now - self._last)
        self._last, self._step = stamp + self.offset, duration or self._step
