"""The real event loop on the fake kernel, and transports on fake sockets."""

import asyncio
import contextlib
import weakref
from typing import Any

from iocp_loop._handles import _pipes
from iocp_loop._handles._opening import open_socket
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._loop._event_loop import IocpEventLoop
from iocp_loop._transports._base import EndpointTransport
from iocp_loop._transports._datagram import DatagramTransport
from iocp_loop._transports._stream import StreamTransport

from .arena import PatternArena
from .datagrams import FakeDatagramSocket
from .kernel import FakeKernel
from .network import FakeSocket
from .pipes import FakePipeEnd


class FakeLoop(IocpEventLoop):
    """IocpEventLoop in the fake kernel's time, without the signal socket, which is a real one.

    `reports` holds what reached the exception handler.
    """

    def __init__(self, kernel: FakeKernel) -> None:
        super().__init__(kernel=kernel)
        self.arena = self.proactor.arena = PatternArena(lambda: kernel.chance("memory_error"))
        self.reports: list[dict[str, Any]] = []
        self.transports: weakref.WeakSet[EndpointTransport] = weakref.WeakSet()
        self.set_exception_handler(lambda _loop, report: self.reports.append(report))
        kernel.watch(self.proactor)

    def time(self) -> float:
        return self.proactor.kernel.now_ms / 1000  # type: ignore[attr-defined, no-any-return]

    def run_forever(self) -> None:
        asyncio.BaseEventLoop.run_forever(self)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """No thread: the fake kernel could not know that one is at work, and would call the wait for it a deadlock."""
        future = self.create_future()

        def work() -> None:
            if not future.done():
                try:
                    future.set_result(func(*args))
                except Exception as exc:
                    future.set_exception(exc)

        self.call_later(self.proactor.kernel.random.choice((0, 0.001)), work)  # type: ignore[attr-defined]
        return future

    def take_apart(self) -> None:
        """After a failed schedule: end what is left of it, so that it is not reported a second time as garbage."""
        kernel: Any = self.proactor.kernel
        kernel.give_up()
        with contextlib.suppress(Exception):
            for transport in self.transports:
                transport.abort()
            for task in asyncio.all_tasks(self):
                task.cancel()
            for _ in range(3):
                self.call_soon(self.stop)
                self.run_forever()
        self.close()

    def transport(self, sock: FakeSocket, protocol: Any, *, skip_port: bool = True) -> StreamTransport:
        """As `_make_socket_transport` does it for a real socket."""
        endpoint: Any
        if sock.association is None:
            endpoint = self.proactor.register(OverlappedSocket(sock.fileno(), sock), skip_port=skip_port)
        else:
            endpoint = open_socket(self.proactor, sock, sock)  # type: ignore[arg-type]
        transport = StreamTransport(self._services, endpoint, sock, protocol)  # type: ignore[arg-type]
        self.transports.add(transport)
        return transport

    def datagram_transport(self, sock: FakeDatagramSocket, protocol: Any, address: Any = None) -> DatagramTransport:
        """As `_make_datagram_transport`."""
        endpoint = open_socket(self.proactor, sock, sock)  # type: ignore[arg-type]
        transport = DatagramTransport(self._services, endpoint, sock, protocol, address)  # type: ignore[arg-type]
        self.transports.add(transport)
        return transport

    def pipe_transport(self, cls: type[StreamTransport], pipe: FakePipeEnd, protocol: Any) -> StreamTransport:
        """As `_make_pipe_transport`."""
        endpoint = _pipes.open_overlapped(self.proactor, pipe.fileno(), pipe)
        transport = cls(self._services, endpoint, pipe, protocol)
        self.transports.add(transport)
        return transport
