"""Bodies: any request or output to msgpack and back, arrays as extension types.

An array travels inline, out-of-band (a frame of its own) or as a handle into shared memory; which one is a
`Placement`'s choice. Envelopes are `wire.py`'s business. Because arrays are extension types, no dictionary that a
caller sends can pass for one.

Source: `max.interfaces.utils.serialization` (26.3), `max.pipelines.modeling.types.utils` (26.7).
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, NoReturn, Protocol, Union, get_args, get_origin

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DecodeError, PoolExhausted, UnsupportedArray
from ..shm import Loan, Pool, Reader, SharedMemoryArray
from ..shm.dtypes import MAX_DIMENSIONS, dtype_name, parse_dtype
from .body_bounds import require_few_containers
from .plain_types import is_plain
from .request import RequestID, received_id

#: Extension codes.
INLINE = 1
SHARED = 2
OUT_OF_BAND = 3

#: Below this an array is cheapest inside the message: a copy of 64 KiB costs less than a wake-up (docs/performance.md).
DEFAULT_THRESHOLD_BYTES = 64 << 10
#: An extension counts its bytes with 32 bits; a page of them is left for dtype and shape.
MAX_INLINE_BYTES = (1 << 32) - 4096
#: Nothing that is nested deeper travels; Python's own limit may come first.
MAX_DEPTH = 1000
#: The text of an error that quotes a message is cut to this many characters.
MAX_ERROR_CHARS = 400

#: numpy's kind letters of the scalars that a Python bool, int, float, str or bytes holds exactly.
_PLAIN_KINDS = frozenset("biufSU")


class Placement(Protocol):
    """Puts large arrays into shared memory."""

    def __call__(self, array: npt.NDArray[Any]) -> tuple[Loan, bool] | None:
        """A loan with the handle and whether a copy was made; None to send the array another way."""


class Encoded(msgspec.Struct, eq=False):
    """A body ready to send, and what it took. A struct, because one is made for every message."""

    #: Body, then out-of-band buffers.
    frames: list[Any] = []
    #: Holds on the shared memory that the body names.
    loans: list[Loan] = []
    shared_bytes: int = 0
    #: Copies made of arrays at or over the threshold.
    copies: int = 0
    #: Numbers of the frames that are the sender's own arrays, not copies of them.
    borrowed: list[int] = []

    @property
    def socket_bytes(self) -> int:
        """What the frames weigh."""
        if len(self.frames) == 1:
            return len(self.frames[0])
        return sum(len(frame) if isinstance(frame, bytes) else frame.nbytes for frame in self.frames)

    def own_buffers(self) -> None:
        """Copy the buffers that are the sender's own arrays: they may change before those are sent, or sent again."""
        for number in self.borrowed:
            self.frames[number] = bytes(self.frames[number])
        self.copies += len(self.borrowed)
        self.borrowed.clear()

    def release(self) -> None:
        """Let go of the shared memory: the body was not sent, or its answer has come."""
        for loan in self.loans:
            loan.release()


def encode_body(
    value: Any,
    *,
    place: Placement | None = None,
    out_of_band: bool = False,
    threshold_bytes: int = DEFAULT_THRESHOLD_BYTES,
) -> Encoded:
    """Encode a value; arrays of at least `threshold_bytes` go where `place` puts them, else out-of-band if allowed.

    The same array object twice is placed, or sent out-of-band, once. numpy scalars travel as Python's where those hold
    exactly the same, else as arrays of no dimension.

    Raises UnsupportedArray (a TypeError) for object, structured and masked arrays, TypeError for other values that no
    message can carry, both with the path to the value; PoolExhausted from `place`. After an error nothing is held.
    """
    encoding = _Encoding(place, out_of_band, threshold_bytes)
    try:
        body = msgspec.msgpack.encode(value, enc_hook=encoding.hook)
    except BaseException as error:
        encoding.result.release()
        if isinstance(error, TypeError | ValueError | OverflowError | RecursionError):
            _blame(value, error)
        raise
    encoding.result.frames.insert(0, body)
    return encoding.result


@lru_cache(maxsize=64)
def plain_encoder(threshold_bytes: int) -> Callable[[Any], bytes]:
    """A quick `encode_body` for values that are expected to hold no array of that size; any thread may use it.

    It raises whatever it likes for a value that does, or that cannot travel: `encode_body` knows what to do.
    """

    def small(array: npt.NDArray[Any]) -> msgspec.msgpack.Ext:
        if not _goes_inline(array, threshold_bytes):
            raise UnsupportedArray("too large for a plain body")
        return _inline(array, _wire_dtype(array), array.tobytes())

    def hook(value: Any) -> Any:
        return value.value if type(value) is RequestID else _portable(value, small)

    return msgspec.msgpack.Encoder(enc_hook=hook).encode


def _goes_inline(array: npt.NDArray[Any], threshold_bytes: int) -> bool:
    return array.nbytes < threshold_bytes or not array.nbytes or not array.ndim


def as_buffers(encoded: Encoded, view: Callable[[Loan], npt.NDArray[Any]]) -> Encoded:
    """The same body with its shared arrays as buffers, for a receiver that cannot reach them; `view` reads a loan's.

    The loans stay with the body that was given. Each array is copied once.
    """
    loans: dict[tuple[Any, ...], Loan] = {
        loan.handle.to_wire(): loan for loan in encoded.loans if loan.handle is not None
    }
    numbers: dict[tuple[Any, ...], int] = {}
    frames = list(encoded.frames)

    def hook(code: int, data: memoryview) -> msgspec.msgpack.Ext:
        if code != SHARED:
            return msgspec.msgpack.Ext(code, bytes(data))
        name, shape, dtype, *place = _SHARED_FIELDS.decode(data)
        handle: tuple[Any, ...] = (name, tuple(shape), dtype, *place)
        if handle not in numbers:
            frames.append(bytes(_bytes_of(view(loans[handle]))))
            numbers[handle] = len(frames) - 1
        return _ext(OUT_OF_BAND, (numbers[handle], shape, dtype))

    frames[0] = msgspec.msgpack.encode(msgspec.msgpack.decode(encoded.frames[0], ext_hook=hook))
    return Encoded(frames=frames, copies=encoded.copies + len(numbers))


class _Encoding:
    """The state of one call of `encode_body`."""

    __slots__ = ("_out_of_band", "_place", "_sent", "_threshold_bytes", "result")

    def __init__(self, place: Placement | None, out_of_band: bool, threshold_bytes: int) -> None:
        self._place = place
        self._out_of_band = out_of_band
        self._threshold_bytes = threshold_bytes
        #: Large arrays by `id`, and what each was sent as; an array in here keeps its id from being used again.
        self._sent: dict[int, tuple[npt.NDArray[Any], msgspec.msgpack.Ext]] = {}
        self.result = Encoded()

    def hook(self, value: Any) -> Any:
        return _portable(value, self._array)

    def _array(self, array: npt.NDArray[Any]) -> msgspec.msgpack.Ext:
        name = _wire_dtype(array)
        if _goes_inline(array, self._threshold_bytes):
            return _inline(array, name, array.tobytes())
        if id(array) not in self._sent:
            self._sent[id(array)] = (array, self._large(array, name))
        return self._sent[id(array)][1]

    def _large(self, array: npt.NDArray[Any], name: str) -> msgspec.msgpack.Ext:
        if self._place is not None and (placed := self._place(array)) is not None:
            return self._shared(*placed)
        if self._out_of_band:
            return self._buffer(array, name)
        if array.nbytes > MAX_INLINE_BYTES:
            raise UnsupportedArray(
                f"an array of shape {array.shape} and dtype {name} has {array.nbytes} bytes, over the "
                f"{MAX_INLINE_BYTES} that fit inside a message: send it through shared memory or out-of-band",
            )
        self.result.copies += 1
        return _inline(array, name, _bytes_of(array))

    def _shared(self, loan: Loan, copied: bool) -> msgspec.msgpack.Ext:
        assert loan.handle is not None
        self.result.loans.append(loan)
        self.result.shared_bytes += loan.handle.nbytes
        self.result.copies += copied
        return _ext(SHARED, loan.handle.to_wire())

    def _buffer(self, array: npt.NDArray[Any], name: str) -> msgspec.msgpack.Ext:
        self.result.frames.append(_bytes_of(array))
        # Counted from 1: frame 0 is the body, which is inserted last.
        number = len(self.result.frames)
        if array.flags.c_contiguous:
            self.result.borrowed.append(number)
        else:
            self.result.copies += 1
        return _ext(OUT_OF_BAND, (number, array.shape, name))


def _portable(value: Any, as_extension: Callable[[npt.NDArray[Any]], Any]) -> Any:
    """What a value that msgpack does not know travels as; TypeError for a stranger."""
    if type(value) is RequestID:  # the most frequent
        return value.value
    if isinstance(value, np.ndarray):
        return as_extension(value)
    if isinstance(value, np.generic):
        return value.item() if _is_plain(value) else as_extension(np.asarray(value))
    if hasattr(value, "to_wire") and not isinstance(value, type):
        return value.to_wire()
    kind = type(value).__name__
    raise TypeError(f"a value of type {kind} cannot travel in a message; send numbers, texts, bytes or arrays")


def _is_plain(scalar: np.generic) -> bool:
    is_ours = scalar.dtype.isbuiltin != 2  # 2: of another package, like ml_dtypes
    return scalar.dtype.kind in _PLAIN_KINDS and is_ours and not isinstance(scalar, np.longdouble)


def _wire_dtype(array: npt.NDArray[Any]) -> str:
    """The wire name of an array's dtype; UnsupportedArray for an array that would not arrive as it is."""
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise UnsupportedArray("masked arrays cannot travel: send .filled(...), or .data and .mask one by one")
    return dtype_name(array.dtype)


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """An array's bytes in C order: a view of it, or of a copy when it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _inline(array: npt.NDArray[Any], name: str, raw: bytes | memoryview) -> msgspec.msgpack.Ext:
    return _ext(INLINE, (name, array.shape, raw))


def _ext(code: int, payload: tuple[Any, ...]) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(payload))


def _blame(root: Any, error: BaseException) -> None:
    """Raise the TypeError that names the smallest part of a value which cannot travel; return when all of it can.

    Runs after a failure only. Each step goes into the first part that fails alone.
    """
    path, value, reason, parents = "", root, _objection(root), list[Any]()
    while reason is not None and len(parents) < MAX_DEPTH and not any(parent is value for parent in parents):
        parents.append(value)
        for step, part in _parts(value):
            objection = _objection(part)
            if objection is not None:
                path, value, reason = path + step, part, objection
                break
        else:
            break
    if reason is not None:
        _refuse(path, reason, error)


def _objection(value: Any) -> Exception | None:
    """Why a value cannot be encoded, arrays left out of the message; None when it can."""
    try:
        msgspec.msgpack.encode(value, enc_hook=lambda part: _portable(part, _wire_dtype))
    except Exception as error:  # whatever its own to_wire() raises
        return error.with_traceback(None)  # which leads to the frame that keeps it, and on to every caller's arrays
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a container consists of, each part with its step of the path."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"[{key!r:.40}]", part
            yield f"[key {key!r:.40}]", key
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, msgspec.Struct):
        yield from ((f".{name}", getattr(value, name)) for name in value.__struct_fields__)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{spec.name}", getattr(value, spec.name)) for spec in fields(value))


def _refuse(path: str, reason: Exception, error: BaseException) -> NoReturn:
    text = "nested too deeply for a message, or within itself" if isinstance(reason, RecursionError) else str(reason)
    shown = path if len(path) <= MAX_ERROR_CHARS else f"{path[:200]}...{path[-100:]}"
    kind = UnsupportedArray if isinstance(reason, UnsupportedArray) else TypeError
    raise kind(f"`{shown.removeprefix('.')}`: {text}" if path else text) from error


def decode_body(
    frames: Sequence[Any],
    type_: Any,
    *,
    resolve: Callable[[SharedMemoryArray], npt.NDArray[Any]] | None = None,
    copy: bool = False,
) -> Any:
    """Decode body and buffers into `type_`. Arrays are read-only views, which keep their frame alive, unless `copy`.

    `resolve` turns a handle into an array; without it handles are refused. Raises DecodeError (a ValueError) for
    anything that is not such a value, a forged handle, an array of another dtype than declared and a body of too many
    lists and maps (`body_bounds.py`) included; StaleHandle and SegmentGone come from `resolve` as they are, since
    sending again may help.
    """
    if not frames:
        raise DecodeError("a message without a body")
    require_few_containers(frames[0])
    try:
        plain = _plain_decoder(type_)
    except TypeError:  # it has no hash
        plain = None
    try:
        if plain is not None:
            return plain(frames[0])
        decoding = _Decoding(frames[1:], resolve, copy)
        return msgspec.msgpack.decode(frames[0], type=type_, dec_hook=_typed, ext_hook=decoding.hook)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(str(error)[:MAX_ERROR_CHARS]) from error


#: What the extensions hold: dtype, shape and bytes; a handle's fields; number of the buffer, shape and dtype.
_Shape = Annotated[list[int], msgspec.Meta(max_length=MAX_DIMENSIONS)]
_INLINE_FIELDS = msgspec.msgpack.Decoder(tuple[str, _Shape, memoryview])
_SHARED_FIELDS = msgspec.msgpack.Decoder(tuple[str, _Shape, str, int, int, str])
_OUT_OF_BAND_FIELDS = msgspec.msgpack.Decoder(tuple[int, _Shape, str])


class _Decoding:
    """The state of one call of `decode_body`."""

    __slots__ = ("_buffers", "_copy", "_resolve")

    def __init__(
        self,
        buffers: Sequence[Any],
        resolve: Callable[[SharedMemoryArray], npt.NDArray[Any]] | None,
        copy: bool,
    ) -> None:
        self._buffers = buffers
        self._resolve = resolve
        self._copy = copy

    def hook(self, code: int, data: memoryview) -> npt.NDArray[Any]:
        try:
            return self._finish(self._array(code, data))
        except (DecodeError, ConfigError):  # a wrong setting is this side's fault, not the message's
            raise
        except ValueError as error:  # msgspec's, ForgedHandle, UnsupportedArray, and numpy's own
            raise DecodeError(str(error)[:MAX_ERROR_CHARS]) from error

    def _array(self, code: int, data: memoryview) -> npt.NDArray[Any]:
        if code == INLINE:
            name, shape, raw = _INLINE_FIELDS.decode(data)
            return _from_bytes(raw, shape, name)
        if code == OUT_OF_BAND:
            number, shape, name = _OUT_OF_BAND_FIELDS.decode(data)
            if not 1 <= number <= len(self._buffers):
                raise DecodeError(f"the message names buffer {number} and carries {len(self._buffers)}")
            return _from_bytes(self._buffers[number - 1], shape, name)
        if code == SHARED:
            if self._resolve is None:
                raise DecodeError("a shared-memory handle where none is expected")
            name, shape, dtype, offset, generation, host = _SHARED_FIELDS.decode(data)
            return self._resolve(SharedMemoryArray(name, tuple(shape), dtype, offset, generation, host))
        raise DecodeError(f"extension type {code} is unknown")

    def _finish(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._copy:
            return array.copy()
        flags = array.flags
        if not flags.aligned:  # wherever it happened to lie in its frame
            array = array.copy()
            flags = array.flags
        if flags.writeable:
            flags.writeable = False
        return array


@lru_cache(maxsize=256)
def _plain_decoder(type_: Any) -> Callable[[Any], Any] | None:
    """Decodes bodies of a type without arrays, in any thread; None for other types."""
    if not is_plain(type_):
        return None
    return msgspec.msgpack.Decoder(type_, dec_hook=_request_id, ext_hook=_no_array).decode


def _request_id(_type: Any, value: Any) -> RequestID:
    """The only class of our own in such a type: see `is_plain`."""
    return received_id(value) if type(value) is str else RequestID.from_wire(value)


def _no_array(_code: int, _data: memoryview) -> NoReturn:
    raise DecodeError("an array, where none can be")


def _from_bytes(raw: Any, shape: list[int], name: str) -> npt.NDArray[Any]:
    """A view of raw bytes as an array; every claim of the sender about them is checked first."""
    memory, dtype = memoryview(raw), parse_dtype(name)
    if min(shape, default=0) < 0:
        raise DecodeError(f"an array of shape {shape[:8]} and dtype {name} cannot be")
    if math.prod(shape) * dtype.itemsize != memory.nbytes:
        raise DecodeError(f"an array of shape {shape[:8]} and dtype {name} does not have {memory.nbytes} bytes")
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, memory)
    if dtype.kind == "U" and array.size:
        _require_characters(memory, dtype)
    return array


def _require_characters(memory: memoryview, dtype: np.dtype[Any]) -> None:
    """Text is numbers of characters: with one that is none, Python would raise SystemError wherever it is read.

    Only for bytes off a socket: memory by handle can change after any look at it.
    """
    numbers = np.frombuffer(memory, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
    if numbers.max() > sys.maxunicode:
        raise DecodeError("an array of text holds what is no character")


def _typed(type_: Any, value: Any) -> Any:
    """Fields of types that msgpack does not know: arrays, checked against their annotation, and our value classes."""
    return _reader_of(type_)(value)


@lru_cache(maxsize=256)
def _reader_of(type_: Any) -> Callable[[Any], Any]:
    if type_ is np.ndarray or get_origin(type_) is np.ndarray:
        return _array_reader(type_)
    if hasattr(type_, "from_wire"):
        reader: Callable[[Any], Any] = type_.from_wire
        return reader
    raise DecodeError(f"no message carries a {getattr(type_, '__name__', type_)}")


def _array_reader(type_: Any) -> Callable[[Any], npt.NDArray[Any]]:
    """Checks a decoded value against an array annotation."""
    scalars, dimensions = _declared(type_)

    @lru_cache(maxsize=64)
    def fits(dtype: np.dtype[Any]) -> bool:
        return not scalars or any(_is_subdtype(dtype, scalar) for scalar in scalars)

    def read(array: Any) -> npt.NDArray[Any]:
        if not isinstance(array, np.ndarray):
            raise DecodeError(f"an array is expected, not a {type(array).__name__}")
        if not fits(array.dtype):
            names = " or ".join(scalar.__name__ for scalar in scalars)
            raise DecodeError(f"an array of {names} is expected, not of {array.dtype}")
        if dimensions is not None and array.ndim != dimensions:
            raise DecodeError(f"an array of {dimensions} dimensions is expected, not of {array.ndim}")
        return array

    return read


def _is_subdtype(dtype: np.dtype[Any], scalar: type[np.generic]) -> bool:
    if dtype.kind == "m":  # for numpy a time is a signed integer
        return scalar in (np.timedelta64, np.generic)
    # numpy does not count the floats of ml_dtypes, of kind "V" or "f", as floating.
    return np.issubdtype(dtype, scalar) or (dtype.kind in "fV" and issubclass(np.floating, scalar))


def _declared(type_: Any) -> tuple[tuple[type[np.generic], ...], int | None]:
    """The scalar types and the number of dimensions of an array annotation; () and None when any will do."""
    shape, dtype = (*get_args(type_), Any, Any)[:2]
    lengths = get_args(shape)
    dimensions = None if not lengths or Ellipsis in lengths else len(lengths)
    inner = (*get_args(dtype), Any)[0]
    choices = get_args(inner) if get_origin(inner) in (Union, UnionType) else (inner,)
    scalars = tuple(get_origin(choice) or choice for choice in choices)
    known = all(isinstance(scalar, type) and issubclass(scalar, np.generic) for scalar in scalars)
    return (scalars if known else ()), dimensions


# -- the documented factories -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Encoder:
    """What `msgpack_numpy_encoder` returns; pickles as its options, so a pool stays in its process."""

    shared_memory_threshold: int | None
    pool: Pool | None = None

    def __call__(self, value: Any) -> bytes:
        if self.shared_memory_threshold is None:
            encoded = encode_body(value)
        else:
            pool = self.pool if self.pool is not None else _memory.pool
            encoded = encode_body(value, place=publisher(pool), threshold_bytes=self.shared_memory_threshold)
            for loan in encoded.loans:
                pool.send(loan)
        body: bytes = encoded.frames[0]
        return body

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Encoder, (self.shared_memory_threshold,))


def publisher(pool: Pool) -> Placement:
    """Places arrays in a pool; a full pool means that the array travels another way."""

    def place(array: npt.NDArray[Any]) -> tuple[Loan, bool] | None:
        try:
            return pool.publish(array)
        except PoolExhausted:
            return None

    return place


def msgpack_numpy_encoder(
    use_shared_memory: bool = False,
    shared_memory_threshold: int = 24_000_000,
    *,
    pool: Pool | None = None,
) -> Callable[[Any], bytes]:
    """`encoder(value) -> bytes`: one msgpack message, arrays inline.

    With `use_shared_memory`, arrays of at least `shared_memory_threshold` bytes (0: all) lie in `pool` (None: one of
    this process) and travel as handles; a full pool sends them inline. The memory waits a minute for its first reader
    and lives until the last reader's view is gone. The encoder is thread-safe and can be pickled.

    Raises UnsupportedArray for object and structured arrays, TypeError for other values that no message can carry.
    """
    return _Encoder(shared_memory_threshold if use_shared_memory else None, pool)


@dataclass(frozen=True)
class _Decoder:
    """What `msgpack_numpy_decoder` and its out-of-band twin return."""

    type_: Any
    copy: bool = False
    out_of_band: bool = False

    def __call__(self, data: Any) -> Any:
        frames = data if self.out_of_band else [data]
        return decode_body(frames, self.type_, resolve=_memory.reader.claim, copy=self.copy)


def msgpack_numpy_decoder(type_: Any, copy: bool = False) -> Callable[[Any], Any]:
    """`decoder(data) -> type_`: reads what `msgpack_numpy_encoder` wrote.

    Arrays are read-only views, of shared memory as long as they live; `copy=True` gives writable arrays of their own.
    The dtype in an annotation like `NDArray[np.float32]` is checked. Thread-safe; can be pickled.

    Raises DecodeError (a ValueError) for bytes that are no such value, StaleHandle or SegmentGone for lost memory.
    """
    return _Decoder(type_, copy)


@dataclass(frozen=True)
class _OutOfBandEncoder:
    """What `msgpack_numpy_oob_encoder` returns."""

    oob_threshold: int

    def __call__(self, value: Any) -> list[Any]:
        return encode_body(value, out_of_band=True, threshold_bytes=self.oob_threshold).frames


def msgpack_numpy_oob_encoder(oob_threshold: int = 65536) -> Callable[[Any], list[Any]]:
    """`encoder(value) -> [message, *buffers]`: arrays of at least `oob_threshold` bytes as buffers of their own.

    The buffers are views of the arrays, which must not change until they have been sent. Thread-safe.
    """
    return _OutOfBandEncoder(oob_threshold)


def msgpack_numpy_oob_decoder(type_: Any, copy: bool = False) -> Callable[[Any], Any]:
    """`decoder([message, *buffers]) -> type_`: reads what `msgpack_numpy_oob_encoder` wrote."""
    return _Decoder(type_, copy, out_of_band=True)


class _ProcessMemory:
    """The pool and the reader that the factories of one process share, each made when it is first needed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew: a forked child may use neither its parent's pool nor its leases, nor wait for its lock."""
        self._lock = threading.Lock()
        self._pool: Pool | None = None
        self._reader: Reader | None = None

    @property
    def pool(self) -> Pool:
        with self._lock:
            if self._pool is None:
                self._pool = Pool()
            return self._pool

    @property
    def reader(self) -> Reader:
        with self._lock:
            if self._reader is None:
                self._reader = Reader()
            return self._reader


_memory = _ProcessMemory()
os.register_at_fork(after_in_child=_memory.forget)
