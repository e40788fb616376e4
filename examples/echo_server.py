"""An echo server as an asyncio protocol, on this loop.

python examples/echo_server.py [PORT]     serve until Ctrl+C; port 0 takes any that is free
"""

import asyncio
import sys

import iocp_loop


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        print("hello,", transport.get_extra_info("peername"))

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    # A client that sends and does not read must not fill our memory: stop listening to it until it reads.
    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        print("good-bye" if exc is None else f"lost: {exc}")


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", port)
    print(f"echo on port {server.sockets[0].getsockname()[1]}, {type(loop).__name__}; Ctrl+C stops", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    try:
        iocp_loop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7777))
    except KeyboardInterrupt:
        print("stopped")
