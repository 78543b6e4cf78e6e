"""The pool's door: strangers, liars and readers that do not read harm nobody else."""

import contextlib
import logging
import os
import socket
import struct

import numpy as np
import pytest

from tensoryard.shm import Reader, messages
from tensoryard.shm import server as server_module
from tensoryard.shm.os_memory import attach

from ..baseline import Baseline


class Peer:
    """A hand-made reader."""

    def __init__(self, folder, pool):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(30)
        self.sock.connect(str(folder / f"pool-{pool.name}.sock"))

    def receive(self):
        """One packet and its descriptors."""
        return messages.receive(self.sock)

    def welcome(self):
        """Take the welcome; gives the table's words."""
        packet, (fd,) = self.receive()
        assert packet == messages.WELCOME
        table = attach(fd, writable=True)
        os.close(fd)
        return table.words(table.size_bytes // 8)

    def say(self, kind, number=0):
        """Send one packet."""
        self.sock.send(messages.pack(kind, number))


@pytest.fixture
def connect(runtime_folder):
    """Connects hand-made readers and closes them."""
    with contextlib.ExitStack() as stack:

        def make(pool):
            peer = Peer(runtime_folder, pool)
            stack.enter_context(peer.sock)
            return peer

        yield make


@pytest.fixture
def silent(caplog):
    """Nothing worse than a warning is logged."""
    yield
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


def test_a_peer_is_welcomed_and_handed_segments(pool, connect, silent):
    """The dialog: WELCOME with a table, ATTACH answered by SEGMENT with a descriptor, or by NO_SEGMENT without."""
    loan = pool.place(np.full(5, 7, "u1"))
    peer = connect(pool)
    assert len(peer.welcome()) == 4096
    peer.say(messages.ATTACH, loan.handle.segment_number)
    packet, (fd,) = peer.receive()
    assert messages.unpack(packet) == (messages.SEGMENT, loan.handle.segment_number)
    assert attach(fd).bytes_at(loan.handle.offset, 5).tolist() == [7] * 5
    os.close(fd)
    for number in (99, 0, 2**64 - 1):
        peer.say(messages.ATTACH, number)
        assert peer.receive() == (messages.pack(messages.NO_SEGMENT, number), [])


def test_what_is_not_understood_is_passed_over(pool, connect, silent):
    """Unknown letters, odd lengths and descriptors nobody asked for change nothing: the connection and leases stay."""
    loan = pool.place(np.ones(5))
    peer = connect(pool)
    words = peer.welcome()
    words[1] = loan.generation << 2 | 1
    loan.release()
    before = Baseline()
    for packet in (b"?", b"A", b"x" * 1000, messages.pack(b"\xff", 1), b"W" * 9, messages.pack(messages.SEGMENT, 1)):
        peer.sock.send(packet)
    socket.send_fds(peer.sock, [b"take"], [peer.sock.fileno()] * 4)
    peer.say(messages.ATTACH, 99)
    assert messages.unpack(peer.receive()[0]) == (messages.NO_SEGMENT, 99)
    before.assert_nothing_new()
    assert pool.statistics().used_blocks == 1
    words[1] = loan.generation << 2 | 2
    assert pool.statistics().used_blocks == 0


def test_a_reader_that_asks_and_never_reads_stops_nobody(pool, connect, reader, silent):
    """A peer that fills its own connection with unread answers is not waited for."""
    loan = pool.place(np.arange(5))
    peer = connect(pool)
    peer.sock.setblocking(False)
    asked = 0
    while asked < 3000:
        try:
            peer.say(messages.ATTACH, loan.handle.segment_number)
            asked += 1
        except BlockingIOError:
            reader.close()  # a reader that connects and attaches anew has been served after what was asked
            assert reader.claim(loan.handle).tolist() == [0, 1, 2, 3, 4]
    assert reader.claim(loan.handle).tolist() == [0, 1, 2, 3, 4]


def test_a_peer_that_knocks_and_runs_is_no_trouble(pool, connect, reader, silent):
    """A connection that ends before its welcome is passed over in silence."""
    for _ in range(20):
        connect(pool).sock.close()
    loan = pool.place(np.arange(5))
    assert reader.claim(loan.handle).tolist() == [0, 1, 2, 3, 4]


def test_new_pools_do_not_disturb_old_ones(make_pool, connect, silent):
    """Starting a pool, which sweeps dead sockets, makes no reader of the pools that live."""
    old = make_pool()
    for _ in range(5):
        make_pool()
    connect(old).welcome()
    assert next(old._server._keys) == 2


@pytest.mark.case(4)
def test_leases_end_with_the_connection(pool, connect, eventually):
    """When a connection ends, by close or with answers unread, its claims are over and its table is gone."""
    for unread in (False, True):
        loan = pool.place(np.ones(5))
        peer = connect(pool)
        words = peer.welcome()
        words[5] = loan.generation << 2 | 1
        loan.release()
        assert pool.statistics().used_blocks == 1
        if unread:
            peer.say(messages.ATTACH, 99)
        peer.sock.close()
        eventually(lambda: not pool.statistics().readers, "the owner notices")
        assert pool.statistics().used_blocks == 0


def test_a_claim_that_nobody_saw_ends_with_its_reader_too(pool, connect, eventually):
    """A block whose reader claimed it and died is free, though the owner never saw the claim while it lasted."""
    loan, _ = pool.publish(np.ones(5))
    peer = connect(pool)
    words = peer.welcome()
    pool.send(loan)
    words[5] = loan.generation << 2 | 1
    peer.sock.close()
    eventually(lambda: not pool.statistics().used_blocks, "the block is free")


def test_a_reader_too_many_is_refused(pool, connect, make_reader, monkeypatch, caplog):
    """Beyond MAX_READERS a connection is closed without a welcome, and the refusal is logged."""
    monkeypatch.setattr(server_module, "MAX_READERS", 1)
    connect(pool).welcome()
    assert connect(pool).receive() == (b"", [])
    assert "refused a reader" in caplog.text
    assert pool.statistics().readers == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused(pool, runtime_folder, spawn, caplog):
    """A process of another user gets nothing, even where the folder would let it in."""
    path = runtime_folder / f"pool-{pool.name}.sock"
    runtime_folder.chmod(0o755)
    path.chmod(0o777)
    try:
        remote = spawn()
        remote.do("os.seteuid(65534); sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)")
        remote.do("sock.connect(path)", path=str(path))
        assert remote.get("len(sock.recv(100))") == 0
        remote.do("sock.close(); os.seteuid(0)")
    finally:
        runtime_folder.chmod(0o700)
    assert "refused a reader of user 65534" in caplog.text
    assert pool.statistics().readers == 0


def test_trouble_with_one_reader_does_not_end_the_service(pool, connect, reader, monkeypatch, caplog):
    """When a reader's table cannot be made, it is turned away, the trouble is logged, and the next one is served."""
    make, failures = server_module.create_table, [OSError(24, "Too many open files")]

    def fail_once(size_bytes):
        if failures:
            raise failures.pop()
        return make(size_bytes)

    monkeypatch.setattr(server_module, "create_table", fail_once)
    assert connect(pool).receive() == (b"", [])
    loan = pool.place(np.arange(5))
    assert reader.claim(loan.handle).tolist() == [0, 1, 2, 3, 4]
    assert "Too many open files" in caplog.text


def test_trouble_in_housekeeping_does_not_end_the_service(pool, reader, monkeypatch, caplog):
    """When memory cannot be given back, the trouble is logged and readers are served all the same."""

    def fail():
        raise RuntimeError("books are lost")

    monkeypatch.setattr(pool, "housekeep", fail)
    loan = pool.place(np.arange(5))
    assert reader.claim(loan.handle).tolist() == [0, 1, 2, 3, 4]
    assert Reader().claim(loan.handle).tolist() == [0, 1, 2, 3, 4]
    assert "books are lost" in caplog.text


def test_an_owner_out_of_descriptors_serves_again_when_it_has_some(spawn, handle_of, reader, in_thread):
    """A reader that connects while its owner can open nothing waits, and is served once the owner can."""
    remote = spawn()
    remote.do(
        """
import logging
troubles = []
handler = logging.Handler()
handler.emit = troubles.append
logging.getLogger("tensoryard.shm.server").addHandler(handler)
"""
    )
    remote.do("pool = Pool(budget_bytes=4 << 20); loan = pool.place(np.arange(5))")
    handle = handle_of(remote.get("list(loan.handle.to_wire())"))
    remote.do("old = resource.getrlimit(resource.RLIMIT_NOFILE)")
    remote.do("resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1, old[1]))")
    reading = in_thread(reader.claim, handle)
    remote.do("while not troubles: time.sleep(0.001)")
    remote.do("resource.setrlimit(resource.RLIMIT_NOFILE, old)")
    assert reading.result().tolist() == [0, 1, 2, 3, 4]


def test_packets_are_read_as_they_were_packed():
    """A letter and a number survive; any other shape is no message."""
    for number in (0, 1, 2**64 - 1):
        assert messages.unpack(messages.pack(messages.ATTACH, number)) == (messages.ATTACH, number)
    for packet in (b"", b"A", b"A" * 8, b"A" * 10):
        assert messages.unpack(packet) == (b"", 0)
    with pytest.raises(struct.error):
        messages.pack(messages.ATTACH, 2**64)


def test_a_notice_to_nobody_is_lost_in_silence():
    """Sending to a peer that is gone, or whose queue is full, neither raises nor waits."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for _ in range(2000):
        messages.send_quietly(one, b"notice")
    other.close()
    messages.send_quietly(one, b"notice")
    one.close()
    messages.send_quietly(one, b"notice")
