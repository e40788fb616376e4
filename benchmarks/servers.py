"""The servers under load. Each is what a user would write, and the same code for every loop."""

import asyncio
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
BACKLOG = 1024
# Byte n of a stream that the load generator checks is n % 256.
MEBIBYTE = bytes(range(256)) * 4096
CERTIFICATE = Path(__file__).with_name("localhost.pem")


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    connections = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        Echo.connections += 1

    def connection_lost(self, _exc: BaseException | None) -> None:
        Echo.connections -= 1

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class EchoBuffered(asyncio.BufferedProtocol):
    """The same into a buffer of its own."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = memoryview(bytearray(256 * 1024))

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Sink(asyncio.Protocol):
    """Receives and forgets."""

    def data_received(self, data: bytes) -> None:
        pass


async def pour(writer: asyncio.StreamWriter) -> None:
    """1 MiB at a time."""
    while True:
        writer.write(MEBIBYTE)
        await writer.drain()


async def dribble(writer: asyncio.StreamWriter) -> None:
    """256 bytes at a time, 64 times before it asks whether to wait."""
    chunk = MEBIBYTE[:256]
    while True:
        for _ in range(64):
            writer.write(chunk)
        await writer.drain()


async def lines(writer: asyncio.StreamWriter) -> None:
    """`writelines` of 64 KiB in pieces of 1 KiB."""
    chunks = [MEBIBYTE[:1024]] * 64
    while True:
        writer.writelines(chunks)
        await writer.drain()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


class ProtocolServer:
    """`loop.create_server` of one protocol."""

    protocol: Any = Echo
    tls = False

    async def start(self, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        context = server_context() if self.tls else None
        self.server = await loop.create_server(self.protocol, HOST, 0, backlog=BACKLOG, ssl=context)
        return {"port": self.server.sockets[0].getsockname()[1]}


class StreamServer:
    """`asyncio.start_server` of one coroutine function."""

    handler: Any = staticmethod(echo_stream)

    async def start(self, _loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        self.server = await asyncio.start_server(self.handle, HOST, 0, backlog=BACKLOG)
        return {"port": self.server.sockets[0].getsockname()[1]}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.handler(reader, writer)
        except OSError:
            # The load generator has had enough.
            writer.close()


class SourceServer(StreamServer):
    """Sends without end, whatever it gets."""

    async def handle(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.handler(writer)
        except OSError:
            # The load generator has had enough.
            writer.close()


class FileServer(ProtocolServer):
    """`loop.sendfile` of 4 MiB, over and over."""

    async def start(self, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        self.loop = loop
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
        self.file.write(MEBIBYTE * 4)
        self.file.flush()
        self.protocol = lambda: Connected(self.send)
        return await super().start(loop)

    async def send(self, transport: Any) -> None:
        try:
            while not transport.is_closing():
                await self.loop.sendfile(transport, self.file)
        except (OSError, RuntimeError):
            # The load generator has had enough.
            transport.abort()


class Connected(asyncio.Protocol):
    """Starts a task for each connection, and keeps it."""

    def __init__(self, serve: Any) -> None:
        self.serve = serve

    def connection_made(self, transport: Any) -> None:
        self.task = asyncio.ensure_future(self.serve(transport))


class BareSockets:
    """No loop: accepted sockets in a list. What a connection costs before a loop adds to it."""

    async def start(self, _loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        self.sockets: list[Any] = []
        self.listener = socket.create_server((HOST, 0), backlog=BACKLOG)
        threading.Thread(target=self.accept, daemon=True).start()
        return {"port": self.listener.getsockname()[1]}

    def accept(self) -> None:
        while True:
            self.sockets.append(self.listener.accept()[0])
            Echo.connections += 1


class UdpEcho(asyncio.DatagramProtocol):
    """Sends datagrams back."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)

    async def start(self, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        await loop.create_datagram_endpoint(lambda: self, local_addr=(HOST, 0))
        return {"port": self.transport.get_extra_info("sockname")[1]}


async def asgi(scope: Any, _receive: Any, send: Any) -> None:
    """hello on /, 100 KiB on /big."""
    if scope["type"] != "http":
        raise NotImplementedError
    body = b"hello, world" if scope["path"] == "/" else MEBIBYTE[: 100 * 1024]
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Uvicorn:
    """uvicorn with h11, as `uvicorn --loop ...` runs it."""

    async def start(self, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        import uvicorn

        config = uvicorn.Config(
            asgi, host=HOST, port=0, access_log=False, log_level="error", lifespan="off", http="h11"
        )
        self.server = uvicorn.Server(config)
        self.task = loop.create_task(self.server._serve())  # noqa: SLF001  # serve() also takes the signals
        while not self.server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        return {"port": self.server.servers[0].sockets[0].getsockname()[1]}


class Aiohttp:
    """aiohttp's server, hello on / and 100 KiB on /big."""

    async def start(self, _loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        from aiohttp import web

        async def hello(_request: Any) -> Any:
            return web.Response(text="hello, world")

        async def big(_request: Any) -> Any:
            return web.Response(body=MEBIBYTE[: 100 * 1024])

        application = web.Application()
        application.add_routes([web.get("/", hello), web.get("/big", big)])
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, HOST, 0, backlog=BACKLOG)
        await site.start()
        self.site = site
        return {"port": site._server.sockets[0].getsockname()[1]}  # noqa: SLF001


def _derive(base: type, **attributes: Any) -> type:
    return type(base.__name__, (base,), attributes)


SERVERS: dict[str, Any] = {
    "echo": ProtocolServer,
    "echo_buffered": _derive(ProtocolServer, protocol=EchoBuffered),
    "echo_streams": StreamServer,
    "echo_tls": _derive(ProtocolServer, tls=True),
    "echo_udp": UdpEcho,
    "sink": _derive(ProtocolServer, protocol=Sink),
    "source": _derive(SourceServer, handler=staticmethod(pour)),
    "source_small": _derive(SourceServer, handler=staticmethod(dribble)),
    "source_lines": _derive(SourceServer, handler=staticmethod(lines)),
    "source_file": FileServer,
    "bare": BareSockets,
    "http_uvicorn": Uvicorn,
    "http_aiohttp": Aiohttp,
}
