"""An exported file, before any engine sees it: what it says of itself, and that no bit of it has changed.

It is an ONNX file whose metadata hold ``blemish``, the description as JSON, and as the last entry a digest of all
before. The few lines of protobuf that this takes are read here, so that a station needs no further package, and so that
an engine, which is a large program in C++, is never handed a damaged file.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from blemish.errors import ModelFileError
from blemish.inspection.description import Exported, check_file, parsed

KEY, SEAL = "blemish", b"blemish_sha256"  # in the metadata
_GRAPH, _METADATA = 7, 14  # fields of an ONNX ModelProto
_NODE, _INPUT, _OUTPUT, _VALUE = 1, 11, 12, 13  # and of its graph


def is_exported(path: Path) -> bool:
    """Whether a file is to be read as an exported one: by its name, or because it begins as ONNX does."""
    if path.suffix.lower() == ".onnx" or not path.is_file():
        return path.suffix.lower() == ".onnx"
    with path.open("rb") as file:
        start = file.read(9)
    return start[:1] == b"\x08" and start[8:] != b"{"  # a model file begins with a length and JSON


def sealed(content: bytes) -> bytes:
    """The ``content`` of an ONNX file and, as one more entry of its metadata, the digest of it."""
    entry = b"\n%c%s\x12%c%s" % (len(SEAL), SEAL, 64, hashlib.sha256(content).hexdigest().encode())
    return content + b"%c%c%s" % (_METADATA << 3 | 2, len(entry), entry)


def is_whole(content: bytes) -> bool:
    """Whether it ends with the digest of what stands before."""
    return sealed(content[: -len(sealed(b""))]) == content


def read_exported(path: Path) -> Exported:
    """What the file says of itself; a ModelFileError where it is cut short, changed, or was not exported by us."""
    check_file(path)
    content = path.read_bytes()
    try:
        fields = list(_fields(memoryview(content)))
        entries = [{n: text for n, text, _ in _fields(value)} for number, value, _ in fields if number == _METADATA]
        metadata = {bytes(entry[1]).decode(): bytes(entry.get(2, b"")) for entry in entries}
    except (ValueError, LookupError) as error:
        raise ModelFileError(f"{path} is not a whole ONNX file ({error}): copy or export it again") from error
    if _GRAPH not in {number for number, *_ in fields}:
        raise ModelFileError(f"{path} is not an ONNX file: there is no graph in it. Copy or export it again")
    if KEY not in metadata:
        raise ModelFileError(f"{path} is an ONNX file, but none that `blemish export` wrote")
    if not is_whole(content):
        raise ModelFileError(f"{path} is damaged or was changed: it does not match its digest. Copy or export it again")
    return parsed(metadata[KEY].decode(errors="replace"), Exported, path)


def network(path: Path) -> bytes:
    """An exported graph without its preparation and way back, as engines take it here.

    From ``prepared`` (``n 3 y x``) it goes to ``score`` and, if there is a map, ``input_map``; of ``image`` it may use
    how many there are. A ModelFileError where the file has not these names.
    """
    model = list(_fields(memoryview(path.read_bytes())))
    wanted, found, kept = {b"score", b"input_map"}, set[bytes](), list[bytes | memoryview]()
    ends = {b"prepared": _INPUT, b"image": _INPUT} | dict.fromkeys(wanted, _OUTPUT)
    graph = next(value for number, value, _ in model if number == _GRAPH)
    fields = reversed([*_fields(graph)])  # nodes come after those that they depend on
    for number, value, whole in sorted(fields, key=lambda field: field[0] != _NODE):
        if number == _NODE:
            names = [(field, bytes(name)) for field, name, _ in _fields(value) if field in (1, 2)]
            if wanted.isdisjoint(name for field, name in names if field == 2):
                continue
            wanted |= {name for field, name in names if field == 1} - {b"prepared"}
        elif number in (_INPUT, _OUTPUT, _VALUE):
            name = next(bytes(text) for field, text, _ in _fields(value) if field == 1)
            if name not in ends or name in found or (name == b"image" and name not in wanted):
                continue
            found.add(name)
            kept.append(_field(ends[name], value))
            continue
        kept.append(whole)
    if not {b"prepared", b"score"} <= found:
        raise ModelFileError(f"{path} was exported by an older Blemish, or changed: export it again")
    rest = [whole for number, _, whole in model if number not in (_GRAPH, _METADATA)]
    return b"".join([*rest, _field(_GRAPH, b"".join(reversed(kept)))])


def _field(number: int, content: bytes | memoryview) -> bytes:
    """One field of a protobuf message, of a number below 16."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, content and whole of each field of a protobuf message; numbers' contents are left empty."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number in it has no end")

    while at < len(message):
        start, key = at, varint()
        if key & 7 not in (0, 2):
            raise ValueError(f"it has a field of kind {key & 7} at byte {at}")
        length = varint()  # or the number itself
        end = at + length * (key & 7 == 2)
        if end > len(message):
            raise ValueError(f"{end - len(message)} bytes are missing")
        yield key >> 3, message[at:end], message[start:end]
        at = end
