"""The socket under the layers: what security software puts between Winsock and the system's own sockets."""

import ctypes

from .constants import Ioctl, WsaError
from .errors import os_error
from .kernel import Kernel
from .types import DWORD, HANDLE

# More than this are no layers: a catalog of Windows has some ten entries.
LAYERS_MAX = 16


def base_handle(kernel: Kernel, handle: int) -> int:
    """The socket under whatever layered service providers wrapped around it: the one that AFD knows.

    QUIRK(wine): any number is answered with itself; what is no socket shows when the request is refused.

    Raises:
        OSError: not a socket.
    """
    base, returned = HANDLE(), DWORD()
    where = (0, 0, ctypes.addressof(base), ctypes.sizeof(base), ctypes.addressof(returned), 0, 0)
    layer = handle
    for _ in range(LAYERS_MAX):
        if not kernel.WSAIoctl(layer, Ioctl.SIO_BASE_HANDLE, *where):
            return base.value
        code = kernel.last_error()
        # QUIRK(lsp): some providers swallow SIO_BASE_HANDLE, which they are told not to do, and answer the ioctl that
        # the system's own WSAPoll uses, which leads to the next layer: https://github.com/python-trio/trio/issues/1659
        if code == WsaError.NOTSOCK or kernel.WSAIoctl(layer, Ioctl.SIO_BSP_HANDLE_POLL, *where):
            break
        if base.value == layer:
            return layer
        layer = base.value
    if layer != handle:
        return layer  # The lowest that anybody has told of.
    raise os_error(code, "WSAIoctl(SIO_BASE_HANDLE)", f"handle {handle}")
