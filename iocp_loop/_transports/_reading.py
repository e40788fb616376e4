"""The states of a stream's reader, and the transitions between them.

A reader has two states. `receive` says where its receive operation is, `delivery` what becomes of the data it brings.
(A third, `Idleness`, says how long the connection has been silent.)

    receive    the operation                                   next
    IDLE       is ours, and has no result                      OUT or DUE, when somebody wants to read
    OUT        is the kernel's; or its result is queued or     OUT (re-armed), DUE, HELD, ENDED;
               being delivered                                 IDLE, if nobody wants more
    DUE        is ours. It is submitted after the callbacks    OUT; IDLE, if nobody wants more by then
               that its data queued, or that were queued when
               reading was resumed
    HELD       is ours, with a result that nobody wants yet    as from OUT, when the result is delivered
    ENDED      is ours, and is not submitted again: the        none
               stream has ended, or must not be read

    delivery   incoming data                                   entered
    STRAIGHT   are delivered                                   from PAUSED by resume(), unless older bytes come first;
                                                               from BEHIND when these were delivered
    PAUSED     are held; a failure is reported all the same    from STRAIGHT or BEHIND by pause()
    BEHIND     are held until older bytes were delivered:      from PAUSED by resume(); from STRAIGHT by an interrupt
               those that start_tls() took back from the
               protocol before, or that an interrupt left
    STOPPED    are dropped                                     from any, by close(), abort() or an error

The two are independent, because pausing never cancels a receive: a paused reader keeps its receive OUT, at most one
result is HELD, and no further receive is submitted until that one was delivered. So the kernel's flow control slows
down a peer that is not read from.
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
    """What becomes of the data that a reader receives; see the module's header."""

    STRAIGHT = "straight"
    PAUSED = "paused"
    BEHIND = "behind"
    STOPPED = "stopped"


class Idleness(Enum):
    """How long the connection has been silent. After two rounds of `_idle.IdleRounds` it gives its receive buffer back.

    A receive of no bytes then waits for data (MSDN, WSARecv: it completes when there are data, or the end), and a
    receive with a buffer follows it. Windows locks the pages of a buffer that waits to be filled (documented, not seen:
    under Wine it does not); a resting connection has no buffer.
    """

    AWAKE = "awake"  # something came since the last round
    QUIET = "quiet"  # nothing came since the last round
    SHEDDING = "shedding"  # nothing came for two rounds: the receive was cancelled, and its packet is on its way
    RESTING = "resting"  # a receive of no bytes is out


IDLE, OUT, DUE, HELD, ENDED = Receive
STRAIGHT, PAUSED, BEHIND, STOPPED = Delivery
AWAKE, QUIET, SHEDDING, RESTING = Idleness
