"""Every limit of a tunnel, and what happens there."""

from __future__ import annotations

from typing import Final

from uservpn.wire.constants import KIB, MIB, PAYLOAD_SIZE_MAX, TAG_SIZE

EARLY_SIZE: Final = 64 * KIB
"""Credit an opener has before the exit's first grant (docs/wire.md); more waits."""
WINDOW_START: Final = 256 * KIB
WINDOW_MAX: Final = 16 * MIB
"""Receive window of one stream: starts here, doubles while the path empties it, ends there."""
CREDIT_STEP: Final = 512 * KIB
"""Credit comes back in halves of the window; where those are larger than this, in such steps, or eighths:
its source should not stop and go."""
CREDIT_ROUNDS: Final = 8.0
"""A window that is used up in fewer round trips doubles: what waits for a repair fits as well."""
WINDOW_SUM_MAX: Final = 1024 * MIB
"""Receive windows of all streams together: beyond it none grows."""
CACHE_MAX: Final = 64 * MIB
"""Resend cache of one tunnel: full means no new data until the sink confirms; push back."""
QUEUE_STREAM_MAX: Final = 512 * KIB
QUEUE_MAX: Final = 8 * MIB
"""Chunks waiting to be sent, per stream and per tunnel: beyond it `write` returns False."""
FRESH_SIZE: Final = 64 * KIB
"""A stream is "new or interactive", and goes ahead, until it has sent this much without a pause."""
FRESH_EXTRA: Final = 16 * KIB
"""On a path with congestion control they may exceed its window and pace by so much: they do not wait."""
COPY_SIZE: Final = 512
COPY_LOSS: Final = 0.01
"""Control and interactive messages up to this size leave twice on a path that loses more than this share."""
RESEND_SHARE: Final = 1.0
RESEND_BURST: Final = 8 * MIB
RESEND_TRICKLE: Final = 4 * 1408
"""Budget of one path: bytes sent again for each byte confirmed on it, and so many ahead. Half of all may get
lost before it is used up; then bulk waits, and resends go on by the trickle a round trip."""
SMALL_CHUNK: Final = 8 * KIB
"""Chunks up to this size are joined into one message with others."""
CONTROL_MAX: Final = 1 << 16
"""Control frames that wait to be sent while the peer goes on sending: beyond it breaks the protocol."""
FRAME_MIN: Final = 1000
"""A frame of so many bytes fits into a message on every path."""
ACK_COUNT: Final = 64
ACK_SIZE: Final = 2 * MIB
ACK_DELAY_S: Final = 0.1
"""The sink reports after so many messages, or bytes, or this long after the first unreported one."""
FAR_RTT_S: Final = 0.01
"""From this round trip on reliable links are reported on as often as others, their queue is kept short."""
ACK_COUNT_LOSSY: Final = 256
ACK_DELAY_LOSSY_S: Final = 0.025
ACK_DELAY_MIN_S: Final = 0.001
"""Over a link that loses messages: after so many, or an eighth of a round trip within these bounds."""
GAP_DELAY_S: Final = 0.004
"""A gap that showed over such a link is reported this soon: whatever was only overtaken has come by then."""
REPORT_PARTS_MAX: Final = 4
"""Messages that one report may take; the highest gaps are left for the next one."""
ASK_DELAY_S: Final = 1.0
"""Nothing confirmed for so long (or 4 round trips): an empty message asks for a report, after twice
the time the next, up to ASK_DELAY_MAX_S."""
ASK_DELAY_MAX_S: Final = 8.0
PAD_BELOW: Final = 256
"""Messages shorter than this are padded by up to PAD_MAX bytes."""
PAD_MAX: Final = 96
HELD_EARLY_MAX: Final = 1 << 14
HELD_EARLY_SIZE: Final = 16 * MIB
"""Streams of which something may be kept before their OPEN came, as many as an entry takes connections, and
what their bytes may cost together. A message that would go beyond is dropped, and asked for again."""
HELD_FACTOR: Final = 4
HELD_COST: Final = 64
"""Pieces ahead of a gap may overlap (they are cut anew for another link) up to so many times the credit left,
or WINDOW_START; each also costs this much. Beyond it breaks the protocol."""
GAPS_MAX: Final = 4096
"""Gaps remembered in the peer's sequence (more: the message is dropped) and stream ids (more: the lowest
count as over)."""

assert WINDOW_START >= EARLY_SIZE
assert 2 * QUEUE_STREAM_MAX < CACHE_MAX
assert PAYLOAD_SIZE_MAX > 256 * KIB + TAG_SIZE + 64
