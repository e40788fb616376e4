"""A server on a completion port without asyncio: one port, five worker threads, sessions as completion keys.

    python examples/worker_threads.py [PORT]      serve until Ctrl+C
    python examples/worker_threads.py --selftest  drive it with real clients, compare every byte, stop, see what is left

This is the shape in which completion ports are taught for game servers, complete:

* the completion key of a packet says whose it is: a session, or the listener;
* the OverlappedEx of a packet says what it is: ACCEPT, READ or WRITE;
* AcceptEx runs on the same port as everything else, so no thread sits in accept();
* after each packet the receive is re-armed ("cast the rod again"), or the session never hears from its client again;
* every pending operation holds a reference to its session. Only when the last one has come home is the session over;
* stopping means: cancel, wait for every packet, then close the port, which wakes the workers for the last time.

Who may do what: each session has a lock, and whoever touches the session or its operations holds it. Two workers may
hold two packets of one session (a receive's and a send's); without the lock they would both act on it at once.

The handles are registered without `skip_port`: every completion comes through the port, where a worker waits for it.
"""

import random
import socket
import struct
import sys
import threading
from collections import Counter

from iocp_loop.lowlevel import CompletionPort, IoType, OverlappedEx, Proactor, error_of, open_socket

WORKERS = 5
ACCEPTS = 4  # AcceptEx outstanding at a time
RECEIVE_SIZE = 4096
# A client that sends and does not read: its receive is not armed while this much waits to be sent back.
OUTGOING_MAX = 64 * 1024


class Owner:
    """What a completion key stands for: something with a handle, operations on it, and a lock.

    One reference is held by the open handle, and one by each pending operation.
    """

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        self.server = server
        self.lock = threading.RLock()
        self.references = 1
        # Associated with the port for life; the key that comes with it names this handle and no other, ever.
        self.endpoint = open_socket(server.proactor, sock, sock, may_skip_port=False)
        self.endpoint.user = self
        server.arrived()

    def submit(self, operation: OverlappedEx) -> None:
        self.references += 1
        self.server.proactor.submit(operation)

    def settled(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """A packet of ours was dequeued. Its memory is ours again, and its reference is given back at the end."""
        try:
            match operation.io_type:
                case IoType.ACCEPT:
                    self.on_accept(operation, status)
                case IoType.READ:
                    self.on_read(status, byte_count)
                case IoType.WRITE:
                    self.on_write(status)
        finally:
            self.release()

    def close(self) -> None:
        """Cancel what is pending. The handle closes, and the owner goes, when the last packet is in. Twice is once."""
        self.server.proactor.close_endpoint(self.endpoint, self.release)

    def release(self) -> None:
        self.references -= 1
        if self.references == 0:
            self.on_last_reference()
            self.server.gone()

    def on_accept(self, operation: OverlappedEx, status: int) -> None: ...
    def on_read(self, status: int, byte_count: int) -> None: ...
    def on_write(self, status: int) -> None: ...
    def on_last_reference(self) -> None: ...


class Listener(Owner):
    """The listening socket, with several AcceptEx outstanding."""

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        super().__init__(server, sock)
        self.sock = sock
        with self.lock:
            for _ in range(ACCEPTS):
                self.arm(self.endpoint.accept_operation(self.settled, sock))

    def arm(self, operation: OverlappedEx) -> None:
        self.endpoint.prepare_accept(operation)  # A new socket, for the next client.
        self.submit(operation)

    def on_accept(self, operation: OverlappedEx, status: int) -> None:
        conn = operation.arriving
        if self.endpoint.closing:
            conn.close()  # Cancelled, because the server stops; or a client that was too late.
            return
        try:
            self.arm(operation)
        except OSError as exc:
            print(f"one accept less, for want of a socket: {exc}", file=sys.stderr)
        if status:
            conn.close()  # This client was gone before it was accepted.
            return
        try:
            self.endpoint.finish_accept(conn, self.sock)
            session = Session(self.server, conn)
        except OSError as exc:
            print(f"a client was lost on arrival: {exc}", file=sys.stderr)
            conn.close()
            return
        with session.lock:
            session.arm()


class Session(Owner):
    """One client: what arrives is sent back."""

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        super().__init__(server, sock)
        self.buffer = server.proactor.arena.buffer(RECEIVE_SIZE)
        self.receive = self.endpoint.receive_operation(self.settled, self.buffer)
        self.send = self.endpoint.send_operation(self.settled)
        self.outgoing: list[bytes] = []  # what waits for the send in flight to end
        self.client_is_done = False
        server.served += 1

    def arm(self) -> None:
        """Arm the receive, unless it is, or the client is done, or it must first read what it was sent."""
        room = sum(map(len, self.outgoing)) < OUTGOING_MAX
        if room and not (self.receive.pending or self.client_is_done or self.endpoint.closing):
            self.submit(self.receive)

    def on_read(self, status: int, byte_count: int) -> None:
        if status:
            self.server.note(error_of(self.receive, status))
            self.close()  # Reset, or cancelled.
        elif byte_count == 0:
            self.client_is_done = True
            self.close_when_all_is_sent()
        else:
            self.outgoing.append(self.buffer[:byte_count])
            self.send_outgoing()
            self.arm()

    def on_write(self, status: int) -> None:
        if status:
            self.server.note(error_of(self.send, status))
            self.close()
        else:
            self.send_outgoing()
            self.arm()
            self.close_when_all_is_sent()

    def send_outgoing(self) -> None:
        # One send at a time keeps the order. It takes all that is waiting, from where it is: the bytes belong to the
        # kernel until the send's packet is in, and the operation keeps them alive until then.
        if self.outgoing and not self.send.pending and not self.endpoint.closing:
            chunks, self.outgoing = self.outgoing[:16], self.outgoing[16:]
            self.endpoint.set_send_vector(self.send, chunks)
            self.submit(self.send)

    def close_when_all_is_sent(self) -> None:
        if self.client_is_done and not self.outgoing and not self.send.pending:
            self.close()

    def on_last_reference(self) -> None:
        # Not one operation is pending: the only moment at which the memory may go.
        arena = self.server.proactor.arena
        for operation in (self.receive, self.send):
            arena.release(operation)
        arena.release_buffer(self.buffer)


class Server:
    """Serves echo on a host and port with WORKERS threads, from construction until `stop`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.port = CompletionPort(concurrency=WORKERS)
        self.proactor = Proactor(self.port)
        self.alive = 0  # owners whose memory is not free yet
        self.empty = threading.Condition()
        self.served = 0
        self.errors: Counter[int] = Counter()
        self.packets_by_thread: Counter[str] = Counter()
        sock = socket.create_server((host, port))
        sock.setblocking(False)
        self.address = sock.getsockname()
        self.listener = Listener(self, sock)
        self.threads = [threading.Thread(target=self.work, name=f"worker {n + 1}") for n in range(WORKERS)]
        for thread in self.threads:
            thread.start()

    def work(self) -> None:
        """What each worker does all its life: wait for packets, act on them."""
        while True:
            try:
                # A few at a time, so that a burst is shared with the other workers.
                packets = self.port.wait(max_packets=4)
            except ValueError:
                return  # The port was closed: the server has stopped.
            for packet in packets:
                owner = self.proactor.endpoints[packet.key].user  # The key says whose it is.
                with owner.lock:
                    self.proactor.settle([packet], self.deliver)
                self.deliver_failures()
            self.packets_by_thread[threading.current_thread().name] += len(packets)

    def deliver(self, settled: tuple[OverlappedEx, int, int]) -> None:
        operation, status, byte_count = settled
        operation.deliver(operation, status, byte_count)

    def deliver_failures(self) -> None:
        """What failed at once has no packet; the proactor keeps it here. Any worker may deliver it."""
        while self.proactor.settled:
            try:
                settled = self.proactor.settled.popleft()
            except IndexError:
                return  # Another worker was faster.
            with settled[0].endpoint.user.lock:
                self.deliver(settled)

    def note(self, error: OSError) -> None:
        with self.empty:  # Sessions of several workers count here, and `+=` is two steps.
            self.errors[error.winerror] += 1

    def arrived(self) -> None:
        with self.empty:
            self.alive += 1

    def gone(self) -> None:
        with self.empty:
            self.alive -= 1
            self.empty.notify_all()

    def stop(self) -> None:
        """Close the listener, then the sessions; wait until the last packet is in; close the port; join the workers."""
        with self.listener.lock:
            self.listener.close()
        with self.empty:
            self.empty.wait_for(lambda: self.listener.endpoint.key not in self.proactor.endpoints, timeout=10)
        for endpoint in list(self.proactor.endpoints.values()):
            with endpoint.user.lock:
                endpoint.user.close()
        with self.empty:
            self.empty.wait_for(lambda: not self.alive, timeout=10)
        self.proactor.close()  # And with it the port, which wakes the workers.
        for thread in self.threads:
            thread.join()


def selftest(clients: int = 20, messages: int = 25) -> int:
    """Real clients in threads of their own: whole conversations, resets, and some still connected at the stop."""
    server = Server()
    wrong: list[str] = []

    def converse(number: int) -> None:
        noise = random.Random(number)
        with socket.create_connection(server.address, timeout=20) as sock:
            for sequence in range(messages):
                message = noise.randbytes(noise.randrange(1, 20_000))
                sock.sendall(message)
                echoed = b""
                while len(echoed) < len(message) and (some := sock.recv(65536)):
                    echoed += some
                if echoed != message:
                    wrong.append(f"client {number}: message {sequence} came back changed")
                    return
            if number % 4 == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh", 1, 0))  # close() is a reset.
                return
            sock.shutdown(socket.SHUT_WR)
            if sock.recv(1):
                wrong.append(f"client {number}: bytes nobody sent")

    threads = [threading.Thread(target=converse, args=(n,)) for n in range(clients)]
    idle = [socket.create_connection(server.address) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    for sock in idle:
        with sock:
            sock.settimeout(20)
            try:
                if sock.recv(1):
                    wrong.append("an idle client got bytes")
            except ConnectionError:
                pass  # Closed by the stop, as it should be.
    workers_alive = sum(thread.is_alive() for thread in server.threads)
    print(f"{clients} clients, {clients * messages} messages, every byte compared; {server.served} sessions served")
    print(f"packets by worker: {dict(sorted(server.packets_by_thread.items()))}")
    print(f"sessions ended by WinError: {dict(server.errors)}")
    print(
        f"after the stop: {server.alive} sessions, {len(server.proactor.pending)} pending operations, "
        f"{len(server.proactor.endpoints)} endpoints, {workers_alive} workers"
    )
    wrong += ["something is left"] * bool(server.alive or server.proactor.pending or workers_alive)
    wrong += ["not every client was served"] * (server.served != clients + len(idle))
    print("\n".join(wrong) or "selftest passed")
    return 1 if wrong else 0


def main() -> int:
    if "--selftest" in sys.argv:
        return selftest()
    server = Server(port=int(sys.argv[1]) if len(sys.argv) > 1 else 7777)
    print(f"echo on {server.address[0]}:{server.address[1]} with {WORKERS} threads; Ctrl+C stops")
    try:
        while True:
            # The main thread has nothing to do; a wait with an end lets Ctrl+C in.
            server.threads[0].join(0.5)
    except KeyboardInterrupt:
        server.stop()
        print(f"stopped; {server.served} sessions served")
    return 0


if __name__ == "__main__":
    sys.exit(main())
