"""IocpEventLoop: asyncio's interface over proactor, handles and transports. `_turn` has the turn itself."""

import asyncio
import inspect
import socket
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from .._asyncio import _private as private
from .._handles import _pipes, _threaded
from .._handles._opening import open_stream
from .._handles._readiness import Interest
from .._handles._sockets import bind_to_any
from .._transports import _pipe
from .._transports._datagram import DatagramTransport
from .._transports._listener import Listener
from .._transports._sendfile import copy_file, send_file
from .._transports._services import Services
from .._transports._stream import StreamTransport
from .._transports._subprocess import SubprocessTransport
from .._transports._watchers import Watchers
from .._win32.kernel import Kernel
from . import _questions
from ._iocp_proactor import IocpProactor
from ._sock_methods import RawSocketMethods

if TYPE_CHECKING:
    import ssl

    from _typeshed import HasFileno

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")
_Protocol = TypeVar("_Protocol", bound=asyncio.BaseProtocol)


class IocpEventLoop(RawSocketMethods):
    """An asyncio event loop on one I/O completion port.

    Args:
        kernel: the kernel to run on; the real one if None.

    Like every asyncio loop it belongs to one thread; other threads may call only `call_soon_threadsafe` and
    `run_coroutine_threadsafe`.
    """

    def __init__(self, *, kernel: Kernel | None = None) -> None:
        super().__init__(kernel=kernel)
        # Programs use `_proactor` to reach the stdlib's proactor (`loop._proactor.wait_for_handle` above all).
        self._stdlib_proactor = self._proactor = IocpProactor(core=self.proactor)
        self._stdlib_proactor.set_loop(self)
        self._listeners: dict[socket.socket, Listener] = {}
        self._pipe_servers: set[_pipe.PipeServer] = set()
        self._watchers = Watchers(self, self.proactor)
        self._services: Services = Services(self, self.proactor, self._turn)
        self._facts: dict[int, _questions.Facts] = {}  # by handle, while its transport is being made

    def close(self) -> None:
        """Close the loop: stop serving, cancel what is pending, and wait for it, bounded in time.

        Operations that the kernel does not give back are kept for the life of the process and reported to the exception
        handler. A second call does nothing.
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        self._uncork()
        self._signals.close()
        for listener in list(self._listeners.values()):
            listener.close()
        self._listeners.clear()
        for server in list(self._pipe_servers):
            server.close()
        self._watchers.close()
        _threaded.flush(self.proactor)
        self._services.lingerings.close()
        self._stdlib_proactor.close()
        super().close()
        # Breaks the cycles, so that a closed loop which nobody refers to is freed at once, and not by the collector.
        self._services.idle_rounds.close()
        self._services = None  # type: ignore[assignment]  # It refers to the loop, and its transports may still use it.
        self._selector = self.proactor

    # -- TCP ---------------------------------------------------------------------------------------------------

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: Any,
        waiter: Any = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: Context | None = None,
    ) -> StreamTransport:
        endpoint = self._stdlib_proactor.take(sock)
        if _is_tcp(sock):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        extra = _with_addresses(sock, extra)
        return StreamTransport(
            self._services, endpoint, sock, protocol, waiter=waiter, extra=extra, server=server, context=context
        )

    def _make_ssl_transport(
        self, rawsock: socket.socket, protocol: Any, sslcontext: Any, waiter: Any = None, **options: Any
    ) -> Any:
        context = options.pop("context", None)  # Passed by CPython's main since python/cpython#153134.
        ssl_protocol, server, extra = self._make_ssl_protocol(protocol, sslcontext, waiter, options)
        self._make_socket_transport(rawsock, ssl_protocol, extra=extra, server=server, context=context)
        return ssl_protocol._app_transport  # noqa: SLF001 - what asyncio's own loops return

    def _make_ssl_protocol(self, protocol: Any, sslcontext: Any, waiter: Any, options: dict[str, Any]) -> Any:
        server, extra = options.pop("server", None), options.pop("extra", None)
        return private.SSLProtocol(self, protocol, sslcontext, waiter, **options), server, extra

    async def start_tls(
        self,
        transport: asyncio.BaseTransport,
        protocol: asyncio.BaseProtocol,
        sslcontext: "ssl.SSLContext",
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport | None:
        """Upgrade a connection to TLS. As in `asyncio.BaseEventLoop.start_tls`, but no byte of the handshake is lost.

        The first bytes of the peer's handshake may have come together with its last plain ones. With
        `asyncio.StreamWriter.start_tls` they wait in the stream's reader, and the handshake begins with them.
        """
        options: Any = {
            "server_side": server_side,
            "server_hostname": server_hostname,
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        if not isinstance(transport, asyncio.Transport):
            return await super().start_tls(transport, protocol, sslcontext, **options)  # It raises.
        before = transport.get_protocol()
        unread = private.take_unread(protocol)
        endpoint = transport.endpoint if isinstance(transport, StreamTransport) else None
        passing_on = None
        if endpoint is not None:
            endpoint.unread += unread
        elif unread:
            # A TLS connection that is to carry another one. asyncio begins the handshake one turn later.
            passing_on = self.call_soon(private.begin_tls_with, transport, before, unread)
        try:
            return await super().start_tls(transport, protocol, sslcontext, **options)
        except BaseException:
            if unread and transport.get_protocol() is before:
                # An argument was refused before anything was done: restore the connection as it was.
                if passing_on is not None:
                    passing_on.cancel()
                elif endpoint is not None:
                    endpoint.unread = endpoint.unread[: -len(unread)]
                private.give_unread(protocol, unread)
            raise

    def _make_datagram_transport(
        self, sock: socket.socket, protocol: Any, address: Any = None, waiter: Any = None, extra: Any = None
    ) -> DatagramTransport:
        endpoint = self._stdlib_proactor.take(sock)
        # WSARecvFrom refuses a socket without a local address.
        bind_to_any(sock)
        extra = _with_addresses(sock, extra)
        return DatagramTransport(self._services, endpoint, sock, protocol, address, waiter, extra)

    def _start_serving(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: Context | None = None,  # The server's own, from Python 3.15 on.
    ) -> None:
        is_tcp = _is_tcp(sock)  # The same holds for the sockets that it accepts.

        def connect(conn: socket.socket, endpoint: Any, addresses: tuple[bytes, bytes]) -> None:
            if is_tcp:
                conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            protocol = protocol_factory()
            if sslcontext is not None:
                options = {
                    "server_side": True,
                    "ssl_handshake_timeout": ssl_handshake_timeout,
                    "ssl_shutdown_timeout": ssl_shutdown_timeout,
                }
                protocol, _, _ = self._make_ssl_protocol(protocol, sslcontext, None, options)
            StreamTransport(self._services, endpoint, conn, protocol, server=server, addresses=addresses)

        within = copy_context() if context is None else private.enterable(context)
        self._listeners[sock] = within.run(Listener, self._services, sock, connect, backlog)

    def _stop_serving(self, sock: socket.socket) -> None:
        listener = self._listeners.pop(sock, None)
        if listener is not None:
            listener.close()
        else:
            sock.close()

    # -- pipes, processes, files -------------------------------------------------------------------------------

    def _make_read_pipe_transport(self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None) -> Any:
        return self._make_pipe_transport(_pipe.ReadPipeTransport, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None) -> Any:
        return self._make_pipe_transport(_pipe.WritePipeTransport, pipe, protocol, waiter, extra)

    def _make_pipe_transport(self, cls: Any, pipe: Any, protocol: Any, waiter: Any, extra: Any) -> Any:
        if isinstance(pipe, socket.socket):
            private.check_ssl_socket(pipe)
            pipe.setblocking(False)
            return cls(
                self._services,
                self._stdlib_proactor.take(pipe),
                pipe,
                protocol,
                waiter=waiter,
                extra={**(extra or {}), "pipe": pipe},
            )
        handle = _pipes.handle_of(pipe)
        facts = self._facts.get(handle) or _questions.ask(self.proactor.kernel, handle)
        named: dict[str, Any] = {**(extra or {}), "pipe": pipe}
        endpoint = open_stream(self.proactor, handle, pipe, is_overlapped=facts.is_overlapped, kind=facts.kind)
        return cls(self._services, endpoint, pipe, protocol, waiter=waiter, extra=named)

    async def connect_read_pipe(
        self, protocol_factory: Callable[[], _Protocol], pipe: Any
    ) -> tuple[asyncio.ReadTransport, _Protocol]:
        """Read from a pipe, a file, a device or a console; asyncio's own loop on Windows reads overlapped pipes only.

        Raises:
            OSError: with `winerror` 170, if somebody else is waiting in a read of the same handle.
        """
        transport, protocol = await self._connect_pipe(super().connect_read_pipe, protocol_factory, pipe)
        return transport, protocol

    async def connect_write_pipe(
        self, protocol_factory: Callable[[], _Protocol], pipe: Any
    ) -> tuple[asyncio.WriteTransport, _Protocol]:
        """Write to a pipe, a file, a device or a console. Raises OSError, as `connect_read_pipe` does."""
        transport, protocol = await self._connect_pipe(super().connect_write_pipe, protocol_factory, pipe)
        return transport, protocol

    async def _connect_pipe(self, connect: Any, protocol_factory: Callable[[], Any], pipe: Any) -> tuple[Any, Any]:
        handle = None if isinstance(pipe, socket.socket) else _pipes.handle_if_shared(pipe)
        if handle is None:
            return await connect(protocol_factory, pipe)  # type: ignore[no-any-return]
        facts = await _questions.ask_aside(self, handle)
        if facts is not None:
            self._facts[handle] = facts
        try:
            return await connect(protocol_factory, pipe)  # type: ignore[no-any-return]
        finally:
            self._facts.pop(handle, None)

    async def create_pipe_connection(
        self, protocol_factory: Callable[[], _Protocol], address: str, *, message_mode: bool = False
    ) -> tuple[_pipe.DuplexPipeTransport, _Protocol]:
        r"""Connect to a named pipe.

        Args:
            protocol_factory: makes the protocol.
            address: ``\\.\pipe\...``; while every instance of it is busy, the call waits for one.
            message_mode: keep the boundaries between the server's writes: each arrives as one `data_received`.

        Returns:
            Transport and protocol. Raises FileNotFoundError if there is no such pipe, OSError otherwise.
        """
        pipe = await self._stdlib_proactor.connect_pipe(address)
        try:
            if message_mode:
                _pipes.set_message_mode(self.proactor.kernel, pipe.fileno(), address)
            protocol = protocol_factory()
            extra = {"addr": address}
            cls = _pipe.MessagePipeTransport if message_mode else _pipe.DuplexPipeTransport
            transport = self._make_pipe_transport(cls, pipe, protocol, None, extra)
        except BaseException:
            pipe.close()
            raise
        return transport, protocol

    async def start_serving_pipe(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        address: str,
        *,
        message_mode: bool = False,
        remote_clients: bool = False,
    ) -> list[_pipe.PipeServer]:
        r"""Serve a named pipe.

        Args:
            protocol_factory: makes a protocol for each client.
            address: ``\\.\pipe\...``
            message_mode: keep the boundaries between writes, both ways.
            remote_clients: accept clients from other machines; rejected by default.

        Returns:
            A list of one server; its `close` stops it. Raises PermissionError if the name is taken.
        """

        def connect(pipe: Any, endpoint: Any) -> StreamTransport:
            protocol = protocol_factory()
            extra = {"addr": address, "pipe": pipe}
            cls = _pipe.MessagePipeTransport if message_mode else _pipe.DuplexPipeTransport
            return cls(self._services, endpoint, pipe, protocol, extra=extra)

        server = _pipe.PipeServer(
            self._services,
            connect,
            address,
            self._pipe_servers.discard,
            message_mode=message_mode,
            remote=remote_clients,
        )
        self._pipe_servers.add(server)
        return [server]

    async def _make_subprocess_transport(
        self,
        protocol: Any,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: Any = None,
        **kwargs: Any,
    ) -> SubprocessTransport:
        waiter = self.create_future()
        transport = SubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
        )
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await transport._wait()  # noqa: SLF001 - as asyncio's own loops do
            raise
        return transport

    def wait_for_handle(self, handle: int, timeout: float | None = None) -> "asyncio.Future[bool]":
        """Wait until a process, event, timer or other waitable handle is signalled.

        Args:
            handle: the handle; keep it open until the future is done.
            timeout: seconds; None waits for ever.

        Returns:
            A future: True, or False if the time was up. Cancelling it ends the wait.
        """
        return self._stdlib_proactor.wait_for_handle(handle, timeout)

    async def _sock_sendfile_native(self, sock: socket.socket, file: Any, offset: int, count: int | None) -> int:
        return await send_file(self._services, self._stdlib_proactor.endpoint(sock), sock, file, offset, count)

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        async with transp.behind_all_writes():
            return await send_file(self._services, transp.endpoint, transp.handle, file, offset, count)

    async def _sendfile_fallback(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        if not isinstance(transp, StreamTransport):
            return await super()._sendfile_fallback(transp, file, offset, count)
        async with transp.behind_all_writes():
            return await copy_file(self._services, transp.endpoint, transp.handle, file, offset, count)

    # -- readiness ---------------------------------------------------------------------------------------------

    def add_reader(self, fd: "int | HasFileno", callback: Callable[[*_Arguments], object], *args: *_Arguments) -> None:
        """Call `callback(*args)` whenever a socket can be read, or accepted from, or was closed by its peer.

        Args:
            fd: the socket, or its handle's value. It may belong to another loop or process.
            callback: called again and again while the socket is ready. It replaces an earlier one.
            args: what it is called with.

        Raises:
            ValueError: it is not a socket, or a closed one.
            RuntimeError: a transport or server of this loop owns the socket.
        """
        self._check_closed()
        self._watchers.add(Interest.READ, fd, callback, args)

    def remove_reader(self, fd: "int | HasFileno") -> bool:
        """Stop watching for reading; False if the socket was not watched. Raises as `add_reader` does."""
        return not self.is_closed() and self._watchers.remove(Interest.READ, fd)

    async def wait_readable(self, sock: "int | HasFileno") -> None:
        """Wait until a socket can be read or accepted from, or its peer has closed it.

        Any number of tasks may wait for the same socket, beside a callback of `add_reader`. If the socket is closed
        meanwhile, the wait is over as well: what the task does next on the socket tells it so.

        Args:
            sock: the socket, or its handle's value. It may belong to another loop or process.

        Raises:
            ValueError: it is not a socket, or a closed one.
            RuntimeError: a transport or server of this loop owns the socket.
        """
        self._check_closed()
        await self._watchers.wait(Interest.READ, sock)

    async def wait_writable(self, sock: "int | HasFileno") -> None:
        """Wait until a socket can be written, has connected, or has failed to connect. Otherwise as `wait_readable`."""
        self._check_closed()
        await self._watchers.wait(Interest.WRITE, sock)

    def add_writer(self, fd: "int | HasFileno", callback: Callable[[*_Arguments], object], *args: *_Arguments) -> None:
        """Call `callback(*args)` whenever a socket can be written, has connected, or has failed to connect.

        Arguments and exceptions are those of `add_reader`.
        """
        self._check_closed()
        self._watchers.add(Interest.WRITE, fd, callback, args)

    def remove_writer(self, fd: "int | HasFileno") -> bool:
        """Stop watching for writing; False if the socket was not watched. Raises as `add_reader` does."""
        return not self.is_closed() and self._watchers.remove(Interest.WRITE, fd)

    # -- signals -----------------------------------------------------------------------------------------------

    def add_signal_handler(self, sig: int, callback: Callable[[*_Arguments], object], *args: *_Arguments) -> None:
        """Call `callback(*args)` in the loop when SIGINT (Ctrl+C), SIGBREAK (Ctrl+Break) or SIGTERM arrives.

        Raises:
            ValueError: another signal; Windows delivers only these.
            RuntimeError: called outside the main thread.
            TypeError: `callback` is a coroutine or a coroutine function.
        """
        self._check_closed()
        if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._signals.add_handler(self, sig, callback, args)

    def remove_signal_handler(self, sig: int) -> bool:
        """Put the signal's previous handling back; False if the loop has no handler for it."""
        return self._signals.remove_handler(sig)


def _with_addresses(sock: socket.socket, extra: dict[str, Any] | None) -> dict[str, Any]:
    """Add the socket's two names to `extra`. A name that the socket does not have is None."""
    extra = {**(extra or {})}
    for name, get in (("sockname", sock.getsockname), ("peername", sock.getpeername)):
        if name not in extra:
            try:
                extra[name] = get()
            except OSError:
                extra[name] = None
    return extra


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM


def new_event_loop() -> IocpEventLoop:
    """Make an event loop: the factory for `asyncio.run(main(), loop_factory=iocp_loop.new_event_loop)`."""
    return IocpEventLoop()


def run(main: Coroutine[Any, Any, _Result], *, debug: bool | None = None) -> _Result:
    """`asyncio.run` on this loop, on every supported Python.

    Args:
        main: a coroutine.
        debug: the loop's debug mode; None for the default.
    """
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)
