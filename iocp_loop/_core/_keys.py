"""Whether the key of a packet names the handle that its operation runs on: asked in debug mode.

The two always agree, because the key was given to the handle once and for life. Where they do not, the packet is not
the operation's: somebody has posted an address that is none of his, or memory was overwritten. To settle it would take
back memory that the kernel still owns.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._endpoint import Key
from ._operation import LifetimeError

if TYPE_CHECKING:
    from ._proactor import Proactor

Packets = Iterable[tuple[int, int, int, int]]


class KeyMismatchError(LifetimeError):
    """A packet names an operation of one handle, and by its key another handle."""


def sorted_out(
    proactor: "Proactor", packets: Packets
) -> tuple[list[tuple[int, int, int, int]], list[KeyMismatchError]]:
    """The packets whose key is right, and what is to be told of the others, which are not to be settled."""
    kept: list[tuple[int, int, int, int]] = []
    errors: list[KeyMismatchError] = []
    for packet in packets:
        key, address, _, _ = packet
        operation = proactor.pending.get(address)
        if operation is None or key in (operation.endpoint.key, Key.POSTED):
            kept.append(packet)
        else:
            errors.append(KeyMismatchError(f"a packet with the key {key} names {operation!r}"))
    return kept, errors
