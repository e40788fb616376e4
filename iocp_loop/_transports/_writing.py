"""The states of a stream's writer, and the transitions between them.

A writer has a phase, which says where its bytes are, and refusals, which say why it accepts no more of them.

    phase      its bytes                             a write
    DIRECT     none wait                             is sent at once, by the socket's own call
    GATHERING  none wait                             is queued until the turn ends: the last turns brought several
    CORKED     wait for the end of the turn          joins them
    FLUSHING   are sent by one overlapped send       waits in the queue
    SHUT       none wait, and none are accepted      is refused
    LOST       were forgotten: abort(), an error     is refused

    from       on                                              to
    DIRECT     a write that the kernel takes whole             DIRECT
               a write that it does not take whole             FLUSHING
               the second write of a turn                      CORKED
    GATHERING  a write                                         CORKED
    CORKED     the turn's end, or the limit is reached: the    DIRECT, GATHERING or SHUT, if the kernel takes all;
               queue is sent                                   otherwise FLUSHING
    FLUSHING   the packet of the send                          FLUSHING while more waits; else as from CORKED
    any empty  a first refusal                                 SHUT
    SHUT       the last refusal is withdrawn                   DIRECT or GATHERING
    any        abort, an error                                 LOST

    refusal    asked for by     a write              when the last byte is out
    EOF        write_eof()      raises               the end of file is sent
    SENDFILE   loop.sendfile()  raises               the loop sends the file
    CLOSING    close()          is dropped           the endpoint is closed

Several refusals may hold at once; the end of file waits for a file that is to be sent before it.
"""

from enum import Enum, Flag


class Phase(Enum):
    """Where a writer's bytes are; see the module's header."""

    DIRECT = "direct"
    GATHERING = "gathering"
    CORKED = "corked"
    FLUSHING = "flushing"
    SHUT = "shut"
    LOST = "lost"


class Refusal(Flag):
    """Why a writer accepts nothing; see the module's header."""

    NONE = 0
    EOF = 1
    SENDFILE = 2
    CLOSING = 4


DIRECT, GATHERING, CORKED, FLUSHING, SHUT, LOST = Phase
NONE, EOF, SENDFILE, CLOSING = Refusal.NONE, Refusal.EOF, Refusal.SENDFILE, Refusal.CLOSING
EMPTY = frozenset({DIRECT, GATHERING, SHUT})
