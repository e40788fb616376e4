"""Debug mode's check that the key of a packet names the handle on which its operation runs.

The two always agree, because a handle keeps its key for life. If they do not, the packet is not the operation's:
somebody posted an address that is not theirs, or memory was overwritten. Settling the operation would take back memory
that the kernel still owns.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._endpoint import Key
from ._operation import LifetimeError

if TYPE_CHECKING:
    from ._proactor import Proactor

Packets = Iterable[tuple[int, int, int, int]]


class KeyMismatchError(LifetimeError):
    """The address in a packet names an operation of one handle, and its key another handle."""


def sorted_out(
    proactor: "Proactor", packets: Packets
) -> tuple[list[tuple[int, int, int, int]], list[KeyMismatchError]]:
    """Split packets into those whose key is right, and an error for each of the others, which must not be settled."""
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
