"""The states of a stream's writer, and what leads from one to another.

Two things are known of a writer: its phase, which says where its bytes are, and its refusals, which say why it accepts
no more of them.

    phase      bytes                                 a write
    DIRECT     none wait                             is tried at once, by the socket's own call
    GATHERING  none wait                             is queued until the turn ends: the last turns brought several
    CORKED     wait for the end of the turn          joins them
    FLUSHING   one overlapped send has them          waits behind it
    SHUT       none wait, and none are accepted      is refused
    LOST       were forgotten: abort(), an error     is refused

    from       by                                              to
    DIRECT     a write that the kernel takes whole             DIRECT
               one that it does not                            FLUSHING
               the second one of a turn                        CORKED
    GATHERING  a write                                         CORKED
    CORKED     the turn's end; or much has gathered: sent      DIRECT, GATHERING or SHUT; FLUSHING, if not whole
    FLUSHING   its packet                                      FLUSHING while more waits; else as from CORKED
    any empty  a first refusal                                 SHUT
    SHUT       the last refusal is taken back                  DIRECT or GATHERING
    any        abort, an error                                 LOST

    refusal    asked for by     a write              when the last byte is out
    EOF        write_eof()      raises               the end of file is sent
    SENDFILE   loop.sendfile()  raises               the file's turn has come
    CLOSING    close()          is dropped           the endpoint is closed

Several refusals may stand at once; the end of file waits for a file that goes out before it.
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
