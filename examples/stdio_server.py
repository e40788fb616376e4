"""A server on standard input and output, as language servers and MCP servers are: one JSON object a line.

    python examples/stdio_server.py

    {"id": 1, "echo": "hello"}              -> {"id": 1, "echo": "hello"}
    {"id": 2, "run": ["git", "--version"]}  -> {"id": 2, "status": 0, "output": "git version ..."}

It ends when its input ends. Requests are served side by side: a tool that takes its time holds up nobody. A tool
inherits our standard input, unless it is given another one; on Windows a child of a program that waits in a read of its
standard input would hang when it starts. This loop asks whether there is something, and reads only then.
"""

import asyncio
import json
import subprocess
import sys

import iocp_loop


async def standard_streams() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=16 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


async def answer(request: dict) -> dict:
    if "run" not in request:
        return request
    # Not our standard output: that is where the answers go.
    tool = await asyncio.create_subprocess_exec(*request["run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = await tool.communicate()
    return {"id": request["id"], "status": tool.returncode, "output": output.decode(errors="replace")}


async def main() -> None:
    reader, writer = await standard_streams()

    async def serve(line: bytes) -> None:
        try:
            reply = await answer(json.loads(line))
        except Exception as exc:
            reply = {"error": f"{type(exc).__name__}: {exc}"}
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()

    async with asyncio.TaskGroup() as requests:
        while line := await reader.readline():
            requests.create_task(serve(line))
    writer.close()


if __name__ == "__main__":
    iocp_loop.run(main())
