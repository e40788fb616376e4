"""The states of a stream's reader, and what leads from one to another.

Two things are known of a reader: where its receive is, and what becomes of what that brings. (A third is how long
nothing has come, see `Idleness`.)

    receive    it                                              to
    IDLE       is with us, and brought nothing                 OUT or DUE, when somebody wants to read
    OUT        is the kernel's, or what it brought is being    OUT (submitted again), DUE, HELD, ENDED;
               delivered, or will be in its turn               IDLE, where nobody wants more
    DUE        is submitted when the callbacks have run that   OUT; IDLE, where nobody wants more by then
               its data asked for, or that were queued when
               somebody resumed reading
    HELD       has brought what nobody wants yet               as from OUT, when it is delivered
    ENDED      is not asked for any more: the stream's end

    delivery   what comes                                      from
    STRAIGHT   is delivered                                    PAUSED by resume(), unless older bytes come first;
                                                               BEHIND, when these were delivered
    PAUSED     is held; a failure is told all the same         STRAIGHT, BEHIND by pause()
    BEHIND     is held until older bytes were delivered:       PAUSED by resume(); STRAIGHT by an interrupt
               what start_tls() took back from the protocol
               before, or an interrupt left in the middle
    STOPPED    is dropped                                      any, by close(), abort(), an error
"""

from enum import Enum


class Receive(Enum):
    """Where a reader's receive is; see the module's header."""

    IDLE = "idle"
    OUT = "out"
    DUE = "due"
    HELD = "held"
    ENDED = "ended"


class Delivery(Enum):
    """What becomes of what a reader receives; see the module's header."""

    STRAIGHT = "straight"
    PAUSED = "paused"
    BEHIND = "behind"
    STOPPED = "stopped"


class Idleness(Enum):
    """How long nothing has come, in rounds of the loop's `_idle.IdleRounds`: two, and the receive buffer goes.

    A receive of no bytes then waits for what comes next (MSDN, WSARecv: it completes when there are data, or the end),
    and a receive with a buffer follows it. Windows locks the pages of a buffer that waits to be filled (documented, not
    seen: under Wine it does not); a connection at rest has none.
    """

    AWAKE = "awake"  # something came since the last round
    QUIET = "quiet"  # nothing did
    SHEDDING = "shedding"  # nor since the one before: the receive was cancelled, and its packet is on its way
    RESTING = "resting"  # a receive of no bytes is out


IDLE, OUT, DUE, HELD, ENDED = Receive
STRAIGHT, PAUSED, BEHIND, STOPPED = Delivery
AWAKE, QUIET, SHEDDING, RESTING = Idleness
