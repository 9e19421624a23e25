"""Delta files taken apart and put together with right checksums, so that lies reach the parser."""

import hashlib
import json
import struct
import zlib

OUTER = {"format": "graftwork.delta", "version": "1"}


def inner_start(data):
    return 8 + struct.unpack_from("<Q", data)[0]


def take_apart(data):
    """Return the table and the body of a valid file."""
    at = inner_start(data)
    packed, plain = struct.unpack_from("<II", data, at + 16)
    start = at + 24
    table = data[start : start + packed]
    text = table if packed == plain else zlib.decompress(table)
    return json.loads(text), data[start + packed + -packed % 8 :]


def wrap(rest, checksum=None):
    """Return a file whose container, sizes and checksum are right for what follows the checksum."""
    inner = (checksum or hashlib.sha256(rest).digest()[:16]) + rest
    tensor = {"data_offsets": [0, len(inner)], "dtype": "U8", "shape": [len(inner)]}
    header = json.dumps({"__metadata__": OUTER, "delta": tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + inner


def put_together(text, body, *, pack=True, plain_size=None, trailing=b""):
    """Return a file with the given table (JSON or bytes) and body."""
    plain = text if isinstance(text, bytes) else json.dumps(text).encode()
    packed = zlib.compress(plain, 9) + trailing if pack else plain
    rest = struct.pack("<II", len(packed), len(plain) if plain_size is None else plain_size)
    rest += packed + bytes(-len(packed) % 8) + body
    return wrap(rest)


def repair(data):
    """Return damaged bytes with the checksum made right again, where there is room for one."""
    try:
        at = inner_start(data)
    except struct.error:
        return data
    if at + 16 > len(data):
        return data
    return wrap(data[at + 16 :])
