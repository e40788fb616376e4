"""The socket under the layers, whatever each layer answers."""

import itertools

import pytest

from iocp_loop._win32.constants import Ioctl, WsaError
from iocp_loop._win32.layers import LAYERS_MAX, base_handle
from iocp_loop._win32.types import HANDLE


class Layers:
    """Answers by handle and ioctl; what is not in the table is refused."""

    def __init__(self, table, code=WsaError.OPNOTSUPP):
        self.table, self.code = table, code
        self.asked = []

    def WSAIoctl(self, handle, ioctl, _in, _in_size, out, *_rest):
        self.asked.append((handle, ioctl))
        answer = self.table(handle, ioctl) if callable(self.table) else self.table.get((handle, ioctl))
        if answer is None:
            return -1
        HANDLE.from_address(out).value = answer
        return 0

    def last_error(self):
        return self.code


BASE, NEXT = Ioctl.SIO_BASE_HANDLE, Ioctl.SIO_BSP_HANDLE_POLL


@pytest.mark.parametrize(
    ("table", "base"),
    [
        ({(1, BASE): 1}, 1),
        ({(1, BASE): 3}, 3),
        # The ioctl is swallowed; the next layer answers it, or the one after.
        ({(1, NEXT): 2, (2, BASE): 3}, 3),
        ({(1, NEXT): 2, (2, NEXT): 3, (3, BASE): 3}, 3),
        # Nobody answers it: the lowest layer that is known.
        ({(1, NEXT): 2}, 2),
        ({(1, NEXT): 1}, 1),
        ({(1, NEXT): 2, (2, NEXT): 2}, 2),
    ],
)
def test_the_lowest_layer_is_found(table, base):
    assert base_handle(Layers(table), 1) == base


@pytest.mark.parametrize("code", [WsaError.NOTSOCK, WsaError.OPNOTSUPP])
def test_what_has_no_layers_is_an_error(code):
    layers = Layers({}, code)
    with pytest.raises(OSError, match="SIO_BASE_HANDLE") as raised:
        base_handle(layers, 1)
    assert raised.value.winerror == code
    assert len(layers.asked) == (1 if code == WsaError.NOTSOCK else 2)


def test_layers_without_an_end_are_not_followed_for_ever():
    numbers = itertools.count(2)
    layers = Layers(lambda _handle, ioctl: next(numbers) if ioctl == NEXT else None)
    assert base_handle(layers, 1) == LAYERS_MAX + 1
