"""Read the structure of a torch `.pt` file without torch and without trusting its pickle.

A `.pt` file is an uncompressed zip: `data.pkl` holds the structure, `data/<key>` the bytes of one
storage. The pickle is read by an unpickler that never imports anything: the few names that carry
structure map to functions of this module, classes map to inert placeholders, and every other name
is refused. Tensors come back as `TensorRef`s that say where their bytes lie.
"""

import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from bigft.errors import CheckpointError

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of one element, by torch's name of the dtype (without `torch.`)."""

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
# The result has no way to run code and no argument that could allocate memory out of proportion.
_PLAIN = {"set": set, "frozenset": frozenset, "int": int, "float": float, "bool": bool}
_PLAIN |= {"complex": complex, "str": str, "dict": dict, "list": list, "tuple": tuple}
_INERT_FUNCTIONS = {
    ("_codecs", "encode"),
    ("builtins", "bytearray"),
    ("builtins", "bytes"),
    ("builtins", "range"),
    ("builtins", "slice"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("copyreg", "_reconstructor"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
    ("torch", "device"),
} | {
    (f"numpy.{core}.multiarray", name)
    for core in ("core", "_core")
    for name in ("scalar", "_reconstruct")
}
_INERT_FUNCTIONS |= {("numpy", "dtype"), ("numpy", "ndarray")}
# Standard library modules whose classes are data; a class of any other one (subprocess.Popen) is
# refused, so that a reader of the error learns that the file is hostile.
_DATA_MODULES = {"argparse", "collections", "datetime", "decimal", "enum", "pathlib", "types"}
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class TensorRef(NamedTuple):
    """Where one tensor's elements lie: byte `offset` of `path`, with `strides` in elements."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return count_elements(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return self.numel == 0
            expected *= size
        return True


class Inert:
    """Stands for an object of the pickle; it stores what it is given and does nothing."""

    source = ""
    args: tuple[object, ...]
    state: object

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        """Keep the constructor's arguments."""
        self = super().__new__(cls)
        self.args = args
        self.state = None
        return self

    def __setstate__(self, state: object) -> None:
        """Keep the state as data."""
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Ignore an entry of a dict subclass."""

    def append(self, value: object) -> None:
        """Ignore an element of a list subclass."""

    def extend(self, values: object) -> None:
        """Ignore the elements of a list subclass."""


class _DType(NamedTuple):
    name: str


class _Storage(NamedTuple):
    offset: int
    dtype: str
    num_bytes: int


def count_elements(shape: tuple[int, ...]) -> int:
    """Multiply the sizes of a shape; 1 for a scalar."""
    product = 1
    for size in shape:
        product *= size
    return product


def read_torch_file(path: Path) -> Any:
    """Read the structure of a `.pt` file; tensors become `TensorRef`s.

    Raises:
        CheckpointError: The file is missing, truncated, of another format, or names something
            that a checkpoint has no reason to name.

    Memory: the pickled structure, not the tensors.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return _read_archive(path, file, archive)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete") from None
    # A damaged pickle can raise nearly anything while its opcodes are carried out.
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(
            f"{path}: damaged or not a torch checkpoint ({type(error).__name__}: {error}); "
            "use another checkpoint, or copy the file again from where it was written"
        ) from error


def _read_archive(path: Path, file: IO[bytes], archive: zipfile.ZipFile) -> Any:
    pickles = [name for name in archive.namelist() if name.count("/") == 1]
    pickles = [name for name in pickles if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: no data.pkl inside; this is not a file of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist():
        order = archive.read(f"{root}byteorder").decode()
        if order != sys.byteorder:
            raise CheckpointError(f"{path}: written on a {order}-endian machine; not supported")
    with archive.open(pickles[0]) as stream:
        return _RestrictedUnpickler(stream, path, _Records(path, file, archive, root)).load()


class _Records:
    """Byte positions of the storages inside the zip."""

    def __init__(self, path: Path, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        self._path = path
        self._file = file
        self._archive = archive
        self._root = root

    def find(self, key: str) -> tuple[int, int]:
        """Return offset and size in bytes of the record `data/<key>`."""
        info = self._archive.getinfo(f"{self._root}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self._path}: record {key} is compressed; not supported")
        # Torch pads each local header so that the bytes start on a 64-byte boundary: the central
        # directory's lengths do not give the offset, only the local header's do.
        position = self._file.tell()
        self._file.seek(info.header_offset)
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        self._file.seek(position)
        offset = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        end = offset + info.file_size
        if magic != b"PK\x03\x04" or end > self._path.stat().st_size:
            raise CheckpointError(f"{self._path}: record {key} is cut off; the file is damaged")
        return offset, info.file_size


class _RestrictedUnpickler(pickle.Unpickler):
    """Carry out a pickle's opcodes with names that cannot do anything."""

    def __init__(self, stream: IO[bytes], path: Path, records: _Records) -> None:
        super().__init__(stream)
        self._path = path
        self._records = records
        # Bound methods, made per file: a pickle can set attributes on what it is handed, and
        # these refuse that.
        self._functions: dict[tuple[str, str], Callable[..., object]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._rebuild_tensor_v3,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._rebuild_parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): self._rebuild_from_type,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Map a name of the pickle to something harmless, or refuse it."""
        if (module, name) in self._functions:
            return self._functions[module, name]
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return _PLAIN[name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _DType(_STORAGES[name])
        if module == "torch" and name in ITEM_BYTES:
            return _DType(name)
        if (module, name) in _INERT_FUNCTIONS or _is_data_class(module, name):
            return type(name, (Inert,), {"source": f"{module}.{name}"})
        raise CheckpointError(
            f"{self._path}: asks for {module}.{name}, which no checkpoint needs; nothing in the "
            "file was run. Do not load it with other tools unless you trust its author"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Turn a storage record into its place in the file."""
        kind, dtype, key, _location, _numel = pid
        if kind != "storage" or not isinstance(dtype, _DType) or not isinstance(key, str):
            raise CheckpointError(f"{self._path}: unknown record {kind!r}")
        offset, num_bytes = self._records.find(key)
        return _Storage(offset, dtype.name, num_bytes)

    def _rebuild_tensor(
        self,
        storage: _Storage,
        storage_offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *_rest: object,
    ) -> TensorRef:
        item_bytes = ITEM_BYTES[storage.dtype]
        shape, strides = tuple(size), tuple(stride)
        if min((storage_offset, *shape, *strides)) < 0 or len(shape) != len(strides):
            raise CheckpointError(f"{self._path}: a tensor has a negative or inconsistent shape")
        steps = ((n - 1) * step for n, step in zip(shape, strides, strict=True))
        end = storage_offset + sum(steps) + 1
        if count_elements(shape) and end * item_bytes > storage.num_bytes:
            raise CheckpointError(f"{self._path}: a tensor is longer than its record; damaged")
        offset = storage.offset + storage_offset * item_bytes
        return TensorRef(self._path, offset, storage.dtype, shape, strides)

    def _rebuild_tensor_v3(
        self,
        storage: _Storage,
        storage_offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        hooks: object,
        dtype: _DType,
        *_rest: object,
    ) -> TensorRef:
        typed = storage._replace(dtype=dtype.name)
        return self._rebuild_tensor(typed, storage_offset, size, stride)

    def _rebuild_parameter(self, data: object, *_rest: object) -> object:
        return data

    def _rebuild_from_type(
        self, function: Callable[..., object], kind: object, arguments: Any, state: object
    ) -> object:
        # Tensors with Python attributes (DeepSpeed's flat groups have some) come this way.
        return function(*arguments)


def _is_data_class(module: str, name: str) -> bool:
    """Whether the name is spelt like a class, of a module that has no dangerous ones."""
    top = module.partition(".")[0]
    is_class = name.rpartition(".")[2].lstrip("_")[:1].isupper()
    return is_class and (top in _DATA_MODULES or top not in sys.stdlib_module_names)
