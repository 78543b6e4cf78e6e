"""Sealed memory: what the kernel refuses, and what a machine without memory answers."""

import ctypes
import fcntl
import mmap
import os
import tempfile
import weakref

import numpy as np
import pytest

from tensoryard.errors import ForgedHandle, PoolExhausted
from tensoryard.shm import host_name, os_memory
from tensoryard.shm import mapping as mapping_module
from tensoryard.shm.mapping import PAGE_BYTES, Mapping
from tensoryard.shm.os_memory import attach, create_sealed, create_table

from ..baseline import Baseline

SIZE = 16 * PAGE_BYTES
SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
FUTURE_WRITE = 0x10


@pytest.fixture
def segment():
    """A sealed segment: its descriptor and the owner's mapping."""
    fd, mapping = create_sealed(SIZE)
    yield fd, mapping
    os.close(fd)


@pytest.fixture
def forged():
    """Makes memfds with some seals only."""
    fds = []

    def make(size, seals):
        fds.append(os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(fds[-1], size)
        fcntl.fcntl(fds[-1], fcntl.F_ADD_SEALS, seals)
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def test_what_the_owner_writes_is_what_a_reader_reads(segment):
    """Two mappings of one segment show the same bytes at different addresses."""
    fd, owner = segment
    reader = attach(fd)
    assert reader.address != owner.address
    owner.bytes_at(100, 5)[:] = range(5)
    assert reader.bytes_at(100, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_reader_cannot_map_for_writing(segment):
    """A second writable mapping of a segment is refused by the kernel."""
    fd, _ = segment
    with pytest.raises(PermissionError):
        mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(again, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(again)


def test_a_reader_cannot_make_its_mapping_writable(segment):
    """mprotect does not add the right to write to a reader's mapping."""
    reader = attach(segment[0])
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(reader.address), ctypes.c_size_t(SIZE), mmap.PROT_READ | mmap.PROT_WRITE) == -1


def test_a_readers_array_cannot_be_made_writable(segment):
    """numpy neither gives a writable view of a reader's memory nor lets one be made of it."""
    view = attach(segment[0]).bytes_at(0, 64)
    for array in (view, view[3:], view.view("<f4")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


@pytest.mark.parametrize("size", [0, PAGE_BYTES, 2 * SIZE])
def test_nobody_can_change_the_size_of_a_segment(segment, size):
    """Truncation, which would make a reader's next access a SIGBUS, and growth are refused by the kernel."""
    with pytest.raises(PermissionError):
        os.ftruncate(segment[0], size)


def test_nobody_can_write_through_the_descriptor_or_change_the_seals(segment):
    """write, hole punching and further seals are refused by the kernel."""
    fd, _ = segment
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    libc = ctypes.CDLL(None, use_errno=True)
    punch_hole_keep_size = 3
    assert libc.fallocate(fd, punch_hole_keep_size, ctypes.c_long(0), ctypes.c_long(PAGE_BYTES)) == -1
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@pytest.mark.parametrize(
    "seals",
    [0, SIZE_SEALS, fcntl.F_SEAL_SHRINK | FUTURE_WRITE, fcntl.F_SEAL_GROW | FUTURE_WRITE],
    ids=["none", "writable", "can grow", "can shrink"],
)
def test_memory_that_lacks_a_seal_is_refused(forged, seals):
    """A descriptor without every seal that readers rely on is ForgedHandle."""
    with pytest.raises(ForgedHandle):
        attach(forged(SIZE, seals))


@pytest.mark.parametrize("size", [0, 8, PAGE_BYTES - 1])
def test_memory_too_small_for_a_header_is_refused(forged, size):
    """A sealed memfd of less than a page, or of nothing, is ForgedHandle."""
    with pytest.raises(ForgedHandle):
        attach(forged(size, SIZE_SEALS | FUTURE_WRITE))


def test_a_file_is_no_segment():
    """Regular files, pipes and directories are ForgedHandle."""
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        with pytest.raises(ForgedHandle):
            attach(file.fileno())
    for fd in (*os.pipe(), os.open("/", os.O_RDONLY)):
        with pytest.raises(ForgedHandle):
            attach(fd)
        os.close(fd)


def test_a_table_is_writable_on_both_sides_and_of_fixed_size():
    """Owner and reader both write to a lease table; neither can change its size."""
    fd, owner = create_table(PAGE_BYTES)
    reader = attach(fd, writable=True)
    reader.words(4)[2] = 7
    owner.words(4)[3] = 8
    assert owner.words(4).tolist() == reader.words(4).tolist() == [0, 0, 7, 8]
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, SIZE + 1), (SIZE, 1), (1 << 62, 1 << 62)])
def test_no_array_reaches_outside_its_mapping(segment, offset, size):
    """Bytes before, after or across the end of a mapping are ForgedHandle."""
    with pytest.raises(ForgedHandle):
        segment[1].bytes_at(offset, size)
    assert segment[1].bytes_at(SIZE, 0).size == 0


def test_an_array_keeps_its_mapping_and_its_owner(mapped):
    """A view of a view keeps the memory mapped, and what was tied to it alive, until it dies."""

    class Tied:
        pass

    before = mapped()
    fd, mapping = create_sealed(SIZE)
    os.close(fd)
    tied = Tied()
    gone = []
    weakref.finalize(tied, gone.append, True)
    view = mapping.bytes_at(0, 64, tied).view("<f4")[3:]
    view[0] = 5
    del tied, mapping
    assert view[0] == 5
    assert mapped() == before + SIZE
    assert gone == []
    del view
    assert gone == [True]
    assert mapped() == before


def test_without_madvise_pages_are_touched_one_by_one(monkeypatch):
    """On kernels that cannot populate by madvise, a segment is made all the same, full of zeros."""
    monkeypatch.setattr(mapping_module, "_MADV_POPULATE_WRITE", 0xFFFF)
    fd, mapping = create_sealed(SIZE)
    os.close(fd)
    assert not mapping.bytes_at(0, SIZE).any()


@pytest.mark.case(10)
def test_a_machine_without_memory_is_an_error_before_any_is_taken(monkeypatch):
    """When the machine has too little left, PoolExhausted says how much was wanted and how much there is."""
    monkeypatch.setattr(os_memory, "available_memory_bytes", lambda: SIZE)
    before = Baseline()
    with pytest.raises(PoolExhausted, match=f"{SIZE} bytes.*{SIZE} left"):
        create_sealed(SIZE)
    before.assert_nothing_new()


def test_a_failed_mapping_leaves_no_descriptor(monkeypatch):
    """Memory that was reserved and cannot be mapped is PoolExhausted, and its descriptor is closed."""
    before = Baseline()

    def no_mapping(*_args, **_kwargs):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os_memory, "Mapping", no_mapping)
    for create in (create_sealed, create_table):
        with pytest.raises(PoolExhausted, match="Cannot allocate memory"):
            create(SIZE)
    before.assert_nothing_new()


@pytest.mark.case(10)
@pytest.mark.parametrize("files", os_memory._GROUP_FILES, ids=["version 2", "version 1"])
def test_the_control_groups_limit_counts(monkeypatch, tmp_path, files):
    """In a limited control group, what is left is the limit less what is used, and the cache of files is not used."""
    limit, used, kinds = files
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000000\n")
    (tmp_path / used).write_text("900000\n")
    (tmp_path / kinds).write_text("anon 5\nfile 700000\ninactive_anon 9\ninactive_file 300000\nactive_file 50000\n")
    monkeypatch.setattr(os_memory, "_CGROUP", tmp_path)
    assert os_memory.available_memory_bytes() == 450_000
    assert os_memory.total_memory_bytes() == 1_000_000
    (tmp_path / used).write_text("9000000\n")
    assert os_memory.available_memory_bytes() == 0


def test_without_a_limit_the_machine_counts(monkeypatch, tmp_path):
    """Without a control group, or with one that says "max", the machine's own figures hold."""
    monkeypatch.setattr(os_memory, "_CGROUP", tmp_path)
    physical = os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES
    assert 0 < os_memory.available_memory_bytes() <= os_memory.total_memory_bytes() <= physical
    (tmp_path / "memory.max").write_text("max\n")
    assert os_memory.total_memory_bytes() <= physical


def test_hosts_are_told_apart(monkeypatch, tmp_path):
    """A host's name is 16 hex digits that stay the same, differ for another boot, and yield to TENSORYARD_HOST."""
    own = host_name()
    assert own == host_name()
    assert len(own) == 16
    assert set(own) <= set("0123456789abcdef")
    with monkeypatch.context() as patch:
        patch.setattr(os_memory, "_BOOT_ID", tmp_path / "none")
        os_memory._kernel_and_name.cache_clear()
        assert host_name() != own
    os_memory._kernel_and_name.cache_clear()
    assert host_name() == own
    monkeypatch.setenv("TENSORYARD_HOST", "node-7")
    assert host_name() == "node-7"


def test_another_process_can_neither_write_nor_shrink_what_it_was_handed(spawn, pool):
    """Over a real connection the reader gets memory that it can read, and neither map writable, write nor truncate."""
    loan = pool.place(np.arange(100.0))
    remote = spawn()
    remote.do("from tensoryard.shm import messages\nfrom tensoryard.shm.runtime_dir import runtime_dir")
    remote.do(
        """
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(str(runtime_dir() / f"pool-{h[0][:16]}.sock"))
_, (table,) = messages.receive(sock)
sock.send(messages.pack(messages.ATTACH, int(h[0][17:])))
_, (fd,) = messages.receive(sock)
refused = []
for attempt in (
    lambda: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    lambda: os.ftruncate(fd, 0),
    lambda: os.pwrite(fd, b"x", 0),
    lambda: os.ftruncate(table, 0),
):
    try:
        attempt()
    except PermissionError:
        refused.append(True)
with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
    total = float(np.frombuffer(memory[h[3] : h[3] + 800]).sum())
sock.close()
os.close(fd)
os.close(table)
""",
        h=loan.handle,
    )
    assert remote.get("refused") == [True] * 4
    assert remote.get("total") == 4950.0


@pytest.mark.parametrize(
    ("limit", "amount", "words"),
    [
        ("RLIMIT_FSIZE", "1 << 20", "File too large"),
        ("RLIMIT_NOFILE", "3 + len(os.listdir('/proc/self/fd'))", "Too many"),
    ],
)
def test_what_the_system_refuses_is_pool_exhausted(spawn, limit, amount, words):
    """A real limit of the process makes PoolExhausted that names reason, budget, use and setting; lifted, all works."""
    remote = spawn()
    remote.do("pool = Pool(budget_bytes=1 << 26); kept = [pool.empty(100)]")
    remote.do(f"old = resource.getrlimit(resource.{limit}); resource.setrlimit(resource.{limit}, ({amount}, old[1]))")
    with pytest.raises(
        Exception, match=f"PoolExhausted.*{words}.*budget is 67108864.*in use by.*TENSORYARD_POOL_BUDGET"
    ):
        remote.do("for _ in range(9): kept.append(pool.empty(5 << 20, 'u1'))")
    remote.do(f"kept.clear(); resource.setrlimit(resource.{limit}, old); pool.check_invariants()")
    remote.do("kept.append(pool.empty(5 << 20, 'u1')); kept.clear(); pool.close()")
    remote.finish()


def test_a_mapping_is_unmapped_when_nothing_uses_it(mapped):
    """A mapping itself holds its memory, and lets it go with its last reference."""
    before = mapped()
    fd, mapping = create_sealed(SIZE)
    other = Mapping(fd, SIZE, writable=False)
    os.close(fd)
    assert mapped() == before + 2 * SIZE
    del mapping, other
    assert mapped() == before
