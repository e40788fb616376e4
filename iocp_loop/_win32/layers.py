"""Finding the socket under layered service providers, which security software puts between Winsock and the system."""

import ctypes

from .constants import Ioctl, WsaError
from .errors import os_error
from .kernel import Kernel
from .types import DWORD, HANDLE

# More layers than this cannot be real: Windows' catalog of providers has some ten entries.
LAYERS_MAX = 16


def base_handle(kernel: Kernel, handle: int) -> int:
    """The socket under all layered service providers, which is the one that AFD knows.

    QUIRK(wine): Wine answers any number with itself. If it is not a socket, the first request on it fails.

    Raises:
        OSError: it is not a socket.
    """
    base, returned = HANDLE(), DWORD()
    where = (0, 0, ctypes.addressof(base), ctypes.sizeof(base), ctypes.addressof(returned), 0, 0)
    layer = handle
    for _ in range(LAYERS_MAX):
        if not kernel.WSAIoctl(layer, Ioctl.SIO_BASE_HANDLE, *where):
            return base.value
        code = kernel.last_error()
        # QUIRK(lsp): some providers swallow SIO_BASE_HANDLE, against the documentation, but answer the ioctl that the
        # system's own WSAPoll uses. It leads to the next layer: https://github.com/python-trio/trio/issues/1659
        if code == WsaError.NOTSOCK or kernel.WSAIoctl(layer, Ioctl.SIO_BSP_HANDLE_POLL, *where):
            break
        if base.value == layer:
            return layer
        layer = base.value
    if layer != handle:
        return layer  # The lowest layer that a provider has named.
    raise os_error(code, "WSAIoctl(SIO_BASE_HANDLE)", f"handle {handle}")
