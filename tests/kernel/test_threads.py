"""Other threads: call_soon_threadsafe wakes the loop, always, and many calls at once cost few packets."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from iocp_loop._loop._scheduling import BACKLOG_MAX

from .peers import Echo, client, receive_exactly, serving
from .watched import here, running, until, wait_until


def test_a_call_from_a_thread_wakes_an_idle_loop(nothing_left):
    """The loop waits for ever when the call comes; repeated, because each time it must fall asleep again."""
    with running() as loop:
        rounds = 50
        done = []

        def call_when_idle():
            for n in range(rounds):
                waits = loop.counts["GetQueuedCompletionStatusEx"]
                wait_until(lambda: len(done) == n)
                loop.call_soon_threadsafe(done.append, n)
                wait_until(lambda: loop.counts["GetQueuedCompletionStatusEx"] > waits)
            wait_until(lambda: len(done) == rounds)
            loop.call_soon_threadsafe(loop.stop)

        thread = threading.Thread(target=call_when_idle)
        thread.start()
        loop.run_forever()
        thread.join(20)
    assert done == list(range(rounds))


def test_storms_from_many_threads_arrive_whole_and_in_each_threads_order(nothing_left):
    """Eight threads, 500 calls each, while the loop runs; none is lost, and the packets are far fewer than the calls."""
    threads, calls = 8, 500
    with running() as loop:
        seen = []

        def storm(number):
            for n in range(calls):
                loop.call_soon_threadsafe(seen.append, (number, n))

        async def main():
            with ThreadPoolExecutor(threads) as pool:
                futures = [loop.run_in_executor(pool, storm, number) for number in range(threads)]
                await asyncio.gather(*futures)
                await until(lambda: len(seen) == threads * calls)

        loop.run_until_complete(main())
        for number in range(threads):
            assert [n for who, n in seen if who == number] == list(range(calls))


def test_calls_that_come_while_the_loop_is_busy_cost_one_packet(nothing_left):
    with running() as loop:
        called = []

        async def main():
            before = loop.counts["PostQueuedCompletionStatus"]

            def storm():
                for n in range(1000):
                    loop.call_soon_threadsafe(called.append, n)

            thread = threading.Thread(target=storm)
            thread.start()
            thread.join()  # The loop is blocked here: nothing is dequeued meanwhile.
            assert loop.counts["PostQueuedCompletionStatus"] - before == 1
            await until(lambda: len(called) == 1000)

        loop.run_until_complete(main())


def test_a_call_before_the_loop_runs_is_made_when_it_does(nothing_left):
    with running() as loop:
        called = []
        threading.Thread(target=loop.call_soon_threadsafe, args=(called.append, 1)).start()
        wait_until(lambda: loop._ready)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert called == [1]


def test_a_call_to_a_closed_loop_raises(nothing_left):
    with running() as loop:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print)


def test_threads_that_call_while_the_loop_closes_get_an_answer_or_an_error(nothing_left):
    """Never a hang, and never anything but RuntimeError."""
    for _ in range(3):
        with running() as loop:
            errors = []
            started = threading.Event()

            def storm():
                started.set()
                try:
                    while True:
                        loop.call_soon_threadsafe(int)
                        time.sleep(0)
                except RuntimeError:
                    pass
                except BaseException as exc:
                    errors.append(exc)

            thread = threading.Thread(target=storm)
            thread.start()
            started.wait(10)
            loop.run_until_complete(asyncio.sleep(0))
        thread.join(20)
        assert not thread.is_alive()
        assert errors == []


async def test_coroutines_can_be_run_from_a_thread():
    loop = here()

    async def answer():
        await asyncio.sleep(0)
        return 42

    def ask():
        return asyncio.run_coroutine_threadsafe(answer(), loop).result(20)

    assert await asyncio.to_thread(ask) == 42


def test_two_loops_in_two_threads_do_not_disturb_each_other(nothing_left):
    results = []

    def run():
        with running() as loop:

            async def main():
                reader_loop = asyncio.get_running_loop()
                server = await asyncio.start_server(_echo, "127.0.0.1", 0)
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                for n in range(50):
                    writer.write(b"%d\n" % n)
                    results.append((id(reader_loop), await reader.readline()))
                writer.close()
                await writer.wait_closed()
                server.close()
                await server.wait_closed()

            loop.run_until_complete(main())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for who in {who for who, _ in results}:
        assert [line for loop, line in results if loop == who] == [b"%d\n" % n for n in range(50)]
    assert len(results) == 100


async def _echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
    writer.close()
    await writer.wait_closed()


async def test_threads_that_call_without_a_pause_neither_hide_packets_nor_run_ahead():
    """Two of them; a client's messages are echoed meanwhile, and few calls wait at any time."""
    loop = here()
    behind = [0]
    stopping = threading.Event()

    def flood():
        while not stopping.is_set():
            loop.call_soon_threadsafe(note)

    def note():
        behind[0] = max(behind[0], len(loop._ready))

    def ask(address):
        with client(address) as sock:
            for _ in range(20):
                sock.sendall(b"message")
                assert receive_exactly(sock, 7) == b"message"

    threads = [threading.Thread(target=flood) for _ in range(2)]
    async with serving(Echo) as (_, address):
        for thread in threads:
            thread.start()
        try:
            await asyncio.to_thread(ask, address)
        finally:
            stopping.set()
            await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
    # One call each beyond the mark, and what else is queued in the loop.
    assert 0 < behind[0] < BACKLOG_MAX + 20


def test_a_callback_may_add_any_number_of_calls_from_the_loops_own_thread(nothing_left):
    """Nobody sleeps there: as many calls as would take minutes to be slowed."""
    with running() as loop:
        done = []

        async def main():
            for n in range(200_000):
                loop.call_soon_threadsafe(done.append, n)
            await until(lambda: len(done) == 200_000)

        loop.run_until_complete(main())


def test_a_loop_that_does_not_run_slows_nobody(nothing_left):
    with running() as loop:
        done = []
        thread = threading.Thread(target=lambda: [loop.call_soon_threadsafe(done.append, n) for n in range(100_000)])
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        loop.run_until_complete(asyncio.sleep(0))
        assert done == list(range(100_000))
