"""Read the structure of a torch `.pt` file without torch and without trusting its pickle.

A `.pt` file is an uncompressed zip: `data.pkl` holds the structure, `data/<key>` the bytes of one
storage. The pickle is read by a machine of our own (`pickle_structure`) that cannot import or call
anything: the few names that carry structure have a meaning here, classes become inert placeholders,
and every other name is refused. Tensors come back as `TensorRef`s that say where their bytes lie.
"""

import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from bigft.errors import CheckpointError
from bigft.files.pickle_structure import MAX_BYTES, StructureError, check_key, read_structure

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
_PLAIN = ("set", "frozenset", "int", "float", "bool", "complex", "str", "dict", "list", "tuple")
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
# Early releases of Python 3.11 write a member of an enum as getattr(class, name), all others as
# class(value). For these classes the first form is read, too; any other getattr is refused.
_ENUMS = {
    "deepspeed.runtime.zero.config.ZeroStageEnum": {
        "disabled": 0,
        "optimizer_states": 1,
        "gradients": 2,
        "weights": 3,
    }
}
_GETATTR = "builtins", "getattr"
# Standard library modules whose classes are data; a class of any other one (subprocess.Popen) is
# refused, so that a reader of the error learns that the file is hostile.
_DATA_MODULES = {"argparse", "collections", "datetime", "decimal", "enum", "pathlib", "types"}
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_END = struct.Struct("<4s8xLLH")
_END64_LOCATOR = struct.Struct("<4s4xQ4x")
_END64 = struct.Struct("<4s36xQQ")
# Some 300,000 records: a directory of more is no checkpoint's, and zipfile would hold all of it.
_MAX_DIRECTORY_BYTES = 32 << 20
_MAX_DIMENSIONS = 64


class TensorRef(NamedTuple):
    """Where one tensor's elements lie: byte `offset` of `path`, with `strides` in elements."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    label: str = ""
    """The attribute `ds_id` that DeepSpeed gave the tensor, if it did."""

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
    """Stands for an object of the pickle; it keeps what it was made with and does nothing."""

    ignores_items = True
    """Elements that the pickle gives it (a subclass of list or dict) are dropped."""

    def __init__(self, source: str, args: tuple[object, ...] = ()) -> None:
        """Keep name and arguments."""
        self.source = source
        self.args = args
        self.state: object = None


class _Function(NamedTuple):
    """A name of the pickle that has a meaning here when it is called."""

    source: str
    call: Callable[..., object]


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


def read_shape(values: object) -> tuple[int, ...]:
    """Check that a value of a file is a shape, and return it.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(values, tuple | list) or len(values) > _MAX_DIMENSIONS:
        raise ValueError("a tensor has a shape that is none")
    if not all(type(value) is int and 0 <= value < 1 << 62 for value in values):
        raise ValueError("a tensor has a negative or impossible shape")
    return tuple(values)


def read_torch_file(path: Path) -> Any:
    """Read the structure of a `.pt` file; tensors become `TensorRef`s.

    Raises:
        CheckpointError: The file is missing, truncated, of another format, or names something
            that a checkpoint has no reason to name.

    Time and memory: proportional to the pickled structure, not to the tensors.
    """
    try:
        with path.open("rb") as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                return _read_archive(path, file, archive)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete") from None
    # A damaged pickle can raise nearly anything while its instructions are carried out.
    except Exception as error:  # noqa: BLE001
        reason = str(error) if isinstance(error, StructureError | OSError) else _describe(error)
        raise CheckpointError(
            f"{path}: damaged or not a torch checkpoint ({reason}); "
            "use another checkpoint, or copy the file again from where it was written"
        ) from error


def _describe(error: Exception) -> str:
    # The text can hold values of the file, however long.
    return f"{type(error).__name__}: {str(error)[:200]}"


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a zip directory that is out of proportion, before zipfile reads it."""
    begin = file.seek(0, 2) - _END.size
    magic, length, _, comment = _unpack(_END, file, begin)
    if magic != b"PK\x05\x06" or comment:
        raise StructureError("no zip file, or cut off; torch before 1.6 wrote another format")
    if begin >= _END64_LOCATOR.size + _END64.size:
        magic, place = _unpack(_END64_LOCATOR, file, begin - _END64_LOCATOR.size)
        if magic == b"PK\x06\x07":
            # Readers differ in where they look: at the place that is named, or just before.
            nearby = begin - _END64_LOCATOR.size - _END64.size
            records = [_unpack(_END64, file, at) for at in {min(place, nearby), nearby}]
            length = max(length % 0xFFFF_FFFF, *(record[1] for record in records))
    if length > _MAX_DIRECTORY_BYTES:
        raise StructureError(f"its zip directory has {length:,} bytes")
    file.seek(0)


def _unpack(form: struct.Struct, file: IO[bytes], at: int) -> tuple[Any, ...]:
    file.seek(max(at, 0))
    taken = file.read(form.size)
    if len(taken) < form.size:
        raise StructureError("it is cut off")
    return form.unpack(taken)


def _read_archive(path: Path, file: IO[bytes], archive: zipfile.ZipFile) -> Any:
    pickles = [name for name in archive.namelist() if name.count("/") == 1]
    pickles = [name for name in pickles if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: no data.pkl inside; this is not a file of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist():
        order = _read_record(path, archive, f"{root}byteorder", 16).decode()
        if order != sys.byteorder:
            raise CheckpointError(f"{path}: written on a {order}-endian machine; not supported")
    data = _read_record(path, archive, pickles[0], MAX_BYTES)
    meaning = _Meaning(path, _Records(path, file, archive, root))
    structure = read_structure(data, meaning)
    meaning.finish()
    return structure


def _read_record(path: Path, archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path}: record {name} is compressed; not supported")
    if info.file_size > max_bytes:
        raise CheckpointError(
            f"{path}: record {name} has {info.file_size:,} bytes, at most {max_bytes:,} are read"
        )
    return archive.read(info)


class _Records:
    """Byte positions of the storages inside the zip."""

    def __init__(self, path: Path, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        self._path = path
        self._file = file
        self._archive = archive
        self._root = root
        self._size = path.stat().st_size

    def find(self, key: str) -> tuple[int, int]:
        """Return offset and size in bytes of the record `data/<key>`."""
        info = self._archive.getinfo(f"{self._root}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self._path}: record {key[:40]} is compressed; not supported")
        # Torch pads each local header so that the bytes start on a 64-byte boundary: the central
        # directory's lengths do not give the offset, only the local header's do.
        magic, name_bytes, extra_bytes = _unpack(_LOCAL_HEADER, self._file, info.header_offset)
        offset = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        end = offset + info.file_size
        if magic != b"PK\x03\x04" or end > self._size:
            raise CheckpointError(f"{self._path}: record {key[:40]} is cut off; damaged")
        return offset, info.file_size


class _Meaning:
    """What the names and calls of a torch file stand for."""

    def __init__(self, path: Path, records: _Records) -> None:
        self._path = path
        self._records = records
        functions: dict[tuple[str, str], Callable[..., object]] = {
            ("collections", "OrderedDict"): lambda: {},
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._rebuild_tensor_v3,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._rebuild_parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): self._rebuild_from_type,
        }
        self._names: dict[tuple[str, str], object] = {
            key: _Function(".".join(key), function) for key, function in functions.items()
        }
        self._is_getattr_idle = False
        for name in _PLAIN:
            plain = _Function(f"builtins.{name}", lambda *args, name=name: _make_plain(name, args))
            self._names["builtins", name] = plain

    def find_name(self, module: str, name: str) -> object:
        """Give a name of the pickle a harmless meaning, or refuse it."""
        # Up to protocol 2 names of the standard library are written as in Python 2.
        module, name = NAME_MAPPING.get((module, name), (module, name))
        module = IMPORT_MAPPING.get(module, module)
        if (module, name) == _GETATTR:
            self._is_getattr_idle = True
            return _Function(".".join(_GETATTR), self._take_member)
        if (module, name) in self._names:
            return self._names[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _DType(_STORAGES[name])
        if module == "torch" and name in ITEM_BYTES:
            return _DType(name)
        if (module, name) in _INERT_FUNCTIONS or _is_data_class(module, name):
            source = f"{module}.{name}"
            return _Function(source, lambda *args: Inert(source, args))
        raise self._refuse(module, name)

    def finish(self) -> None:
        """Refuse what may be there for one purpose only, and was there for another."""
        if self._is_getattr_idle:
            raise self._refuse(*_GETATTR)

    def _refuse(self, module: str, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: asks for {module[:100]}.{name[:100]}, which no checkpoint needs;"
            " nothing in the file was run. Do not load it with other tools unless you trust its"
            " author"
        )

    def _take_member(self, *arguments: object) -> Inert:
        """Read a member of a known enum; nothing is looked up."""
        owner, name = arguments if len(arguments) == 2 else (None, None)
        members = _ENUMS.get(owner.source, {}) if isinstance(owner, _Function) else {}
        if not isinstance(owner, _Function) or not isinstance(name, str) or name not in members:
            raise self._refuse(*_GETATTR)
        self._is_getattr_idle = False
        return Inert(owner.source, (members[name],))

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        """Return what stands for the result of a call."""
        if not isinstance(function, _Function):
            raise StructureError(f"it calls a {type(function).__name__}")
        return function.call(*arguments)

    def build(self, target: object, state: object) -> object:
        """Keep the state of placeholders; attributes of dicts mean nothing here."""
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):
            raise StructureError(f"it sets attributes of a {type(target).__name__}")
        return target

    def find_record(self, record: object) -> _Storage:
        """Turn a storage record into its place in the file."""
        if not isinstance(record, tuple) or len(record) != 5 or record[0] != "storage":
            raise StructureError("it has a persistent id that is no storage")
        _, dtype, key, _location, _numel = record
        if not isinstance(dtype, _DType) or not isinstance(key, str):
            raise StructureError("it has a storage without a format or a key")
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
        shape, strides = read_shape(size), read_shape(stride)
        item_bytes = ITEM_BYTES[storage.dtype]
        if len(shape) != len(strides) or read_shape((storage_offset,)) != (storage_offset,):
            raise StructureError("a tensor has an inconsistent shape")
        steps = ((n - 1) * step for n, step in zip(shape, strides, strict=True))
        end = storage_offset + sum(steps) + 1
        if count_elements(shape) and end * item_bytes > storage.num_bytes:
            raise StructureError("a tensor is longer than its record")
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
        self, function: object, kind: object, arguments: tuple[object, ...], state: object
    ) -> object:
        # Tensors with Python attributes (DeepSpeed's flat groups have some) come this way.
        made = self.call(function, arguments)
        label = state.get("ds_id") if isinstance(state, dict) else None
        if isinstance(made, TensorRef) and isinstance(label, str):
            return made._replace(label=label)
        return made


def _make_plain(name: str, arguments: tuple[Any, ...]) -> object:
    """Make a plain value of Python's, where that takes time in proportion to the arguments."""
    if name in ("set", "frozenset", "list", "tuple") and len(arguments) <= 1:
        given = arguments[0] if arguments else ()
        if not isinstance(given, list | tuple | set | frozenset):
            raise StructureError(f"a {name} of a {type(given).__name__}")
        if name in ("list", "tuple"):
            return list(given) if name == "list" else tuple(given)
        kept = {check_key(value) for value in given}
        return kept if name == "set" else frozenset(kept)
    if name == "dict" and not arguments:
        return {}
    # Enums and NumPy's scalars are made of their class and a value, never of a bare type.
    return Inert(f"builtins.{name}", arguments)


def _is_data_class(module: str, name: str) -> bool:
    """Whether the name is spelt like a class, of a module that has no dangerous ones."""
    top = module.partition(".")[0]
    is_class = name.rpartition(".")[2].lstrip("_")[:1].isupper()
    return is_class and (top in _DATA_MODULES or top not in sys.stdlib_module_names)
