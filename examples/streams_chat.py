"""A chat room over asyncio's streams, on this loop: what one client writes, all others read.

python examples/streams_chat.py [PORT]    serve until Ctrl+C; talk to it with any line-based client
python examples/streams_chat.py --demo    three clients of its own talk, and what they heard is compared
"""

import asyncio
import sys

import iocp_loop

members: dict[str, asyncio.StreamWriter] = {}


async def say(text: str, but: str = "") -> None:
    """Tell everybody but one. Who does not listen for a second is left behind."""
    for name, writer in list(members.items()):
        if name != but:
            writer.write(text.encode() + b"\n")
            try:
                async with asyncio.timeout(1):
                    await writer.drain()
            except (TimeoutError, ConnectionError):
                writer.transport.abort()


async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client, from its name to its end."""
    name = (await reader.readline()).decode().strip()
    try:
        if not name or name in members:
            writer.write(b"that name will not do\n")
            return
        members[name] = writer
        await say(f"{name} is here", but=name)
        writer.write(f"hello {name}, {len(members)} here\n".encode())
        async for line in reader:
            await say(f"{name}: {line.decode().strip()}", but=name)
    except ConnectionError:
        pass  # It left without a word; the others are told below.
    finally:
        if members.get(name) is writer:
            del members[name]
            await say(f"{name} left")
        writer.close()


async def serve(port: int) -> None:
    server = await asyncio.start_server(visit, "127.0.0.1", port)
    print(f"chat on port {server.sockets[0].getsockname()[1]}; Ctrl+C stops", flush=True)
    async with server:
        await server.serve_forever()


async def demo() -> int:
    """Ann, Ben and Cy come one after the other; Ben talks; they leave one after the other."""
    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    heard: list[str] = []

    async def hear(name: str) -> None:
        heard.append(f"{name} hears: {(await clients[name][0].readline()).decode().strip()}")

    for name in ("Ann", "Ben", "Cy"):
        clients[name] = await asyncio.open_connection("127.0.0.1", port)
        clients[name][1].write(f"{name}\n".encode())
        for listener in clients:
            await hear(listener)
    clients["Ben"][1].write(b"anybody there?\n")
    await hear("Ann")
    await hear("Cy")
    for name in ("Ben", "Cy", "Ann"):
        _, writer = clients.pop(name)
        writer.close()
        await writer.wait_closed()
        for listener in clients:
            await hear(listener)
    server.close()
    await server.wait_closed()
    print("\n".join(heard))
    expected = [
        "Ann hears: hello Ann, 1 here",
        *("Ann hears: Ben is here", "Ben hears: hello Ben, 2 here"),
        *("Ann hears: Cy is here", "Ben hears: Cy is here", "Cy hears: hello Cy, 3 here"),
        *("Ann hears: Ben: anybody there?", "Cy hears: Ben: anybody there?"),
        *("Ann hears: Ben left", "Cy hears: Ben left", "Ann hears: Cy left"),
    ]
    return 0 if heard == expected else 1


if __name__ == "__main__":
    if "--demo" in sys.argv:
        sys.exit(iocp_loop.run(demo()))
    try:
        iocp_loop.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 7778))
    except KeyboardInterrupt:
        print("stopped")
