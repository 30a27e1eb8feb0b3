"""Changes to valid inputs that keep enough of their form to get past the first check."""

import json
import zlib
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.fuzz.target import Mutation

_NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (2**63 - 1, 2**63, 2**64 - 1)
_LITERALS = (
    *("null", "true", "false", "[]", "{}", '""', '"a"', "0", "-0", "1", "-1", "1.0", "1e3"),
    *("NaN", "Infinity", "-Infinity", "1e999", "1e308", "2147483648", "9223372036854775808"),
    *("1" * 5000, "-" + "9" * 400, '"' + "x" * 300 + '"', '"\\ud800"', '"\\u0000"', '"../../x"'),
    *('"/dev/zero"', "[" * 2000, '{"a":' * 2000, "[" * 900 + "]" * 900, "[[[]]]", '{"a": 1}'),
)


def of_bytes(data: bytes, random: Random) -> bytes:
    """Flip, overwrite, cut, repeat or insert a few bytes anywhere."""
    changed, at = bytearray(data), random.randint(0, len(data))
    size = min(random.choice((1, 1, 2, 4, 8, 64, 1024)), len(data) - at)
    kind = random.randrange(6)
    if kind == 0 and size:
        changed[at] ^= 1 << random.randrange(8)
    elif kind == 1:
        value = random.choice((*_NUMBERS, *_LARGE))
        word = value.to_bytes(8, random.choice(("little", "big")))
        changed[at : at + size] = word[:size] if size <= 8 else bytes([value & 255]) * size
    elif kind == 2:
        del changed[at : at + size]
    elif kind == 3:
        changed[at:at] = changed[at : at + size]
    elif kind == 4:
        changed[at:at] = random.randbytes(random.choice((1, 2, 16, 64)))
    else:
        del changed[at:]
    return bytes(changed)


def of_tokens(*tokens: bytes) -> Mutation:
    """Insert one of ``tokens``, put it in place of another, or change bytes."""

    def mutate(data: bytes, random: Random) -> bytes:
        present, token = [one for one in tokens if one in data], random.choice(tokens)
        if present and random.random() < 0.4:
            return data.replace(random.choice(present), token, 1)
        if random.random() < 0.5:
            at = random.randint(0, len(data))
            return data[:at] + token + data[at:]
        return of_bytes(data, random)

    return mutate


def of_json(data: bytes, random: Random) -> bytes:
    """Put another literal in the place of one value or key, or drop one, or change bytes."""
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(data, random)
    place = "\x00place\x00"
    box = [tree]
    node, key = random.choice(list(_places(box, 3)))
    kind = random.randrange(4)
    if kind == 0 and node is not box:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[random.choice(("", "a", "__class__", "file_name"))] = node.pop(key)
    elif kind == 2 and isinstance(node[key], int) and random.random() < 0.7:
        node[key] += random.choice((-1, 1, 7, -(2**20), 2**20))
    else:
        node[key] = place
    text = json.dumps(box[0], ensure_ascii=random.random() < 0.5)
    literal = random.choice(_LITERALS)
    return text.replace(json.dumps(place), literal).encode(errors="surrogatepass")


def _places(node: Any, depth: int) -> list[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    places = [(node, key) for key in keys]
    for key in keys:
        if depth and isinstance(node[key], dict | list):
            places += _places(node[key], depth - 1)
    return places


def of_message(kind: type[Message]) -> Mutation:
    """Change one field of a message, at any depth, or bytes of its encoding."""

    def mutate(data: bytes, random: Random) -> bytes:
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return of_bytes(data, random)
        if random.random() < 0.2:
            return of_bytes(data, random)
        _change(message, random)
        return message.SerializeToString()

    return mutate


def _change(message: Message, random: Random) -> None:
    field = random.choice(message.DESCRIPTOR.fields)
    if field.is_repeated:
        _change_repeated(getattr(message, field.name), field, random)
    elif field.message_type is not None:
        _change(getattr(message, field.name), random)
    else:
        setattr(message, field.name, _other(field, getattr(message, field.name), random))


def _change_repeated(values: Any, field: FieldDescriptor, random: Random) -> None:
    kind, at = random.randrange(4), random.randrange(max(len(values), 1))
    if not len(values) or kind == 0:
        values.add() if field.message_type else values.append(_other(field, None, random))
    elif kind == 1:
        del values[at]
    elif kind == 2:
        values.append(values[at])
    elif field.message_type:
        _change(values[at], random)
    else:
        values[at] = _other(field, values[at], random)


def _other(field: FieldDescriptor, value: Any, random: Random) -> Any:
    """Another value that the field can hold."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return of_bytes(value or b"", random)
        texts = ("", "a", "A", "x" * 100, "../x", "\x00", "é", "private", "fast", "0" * 16)
        return random.choice((*texts, *((value + "\n", value[:-1]) if value else ())))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not value
    bits = (
        64
        if field.cpp_type in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_INT64)
        else 32
    )
    signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_INT32)
    number = random.choice((*_NUMBERS, *_LARGE, (value or 0) + 1, (value or 0) - 1))
    number %= 1 << bits
    return number - (1 << bits) if signed and number >> (bits - 1) else number


def of_png(data: bytes, random: Random) -> bytes:
    """Change bytes, then make the checksums of PNG chunks right again."""
    changed = bytearray(of_bytes(data, random))
    at = 8
    while at + 12 <= len(changed) and changed.startswith(b"\x89PNG"):
        size = int.from_bytes(changed[at : at + 4], "big")
        if at + 12 + size > len(changed):
            break
        checksum = zlib.crc32(changed[at + 4 : at + 8 + size])
        changed[at + 8 + size : at + 12 + size] = checksum.to_bytes(4, "big")
        at += 12 + size
    return bytes(changed)


def of_framed_json(data: bytes, random: Random) -> bytes:
    """Change the JSON after an eight-byte length, as safetensors has it, or any bytes."""
    size = int.from_bytes(data[:8], "little")
    if random.random() < 0.3 or size > len(data):
        return of_bytes(data, random)
    head = of_json(data[8 : 8 + size], random)
    return len(head).to_bytes(8, "little") + head + data[8 + size :]


def of_tar(data: bytes, random: Random) -> bytes:
    """Change bytes, in headers half of the time, then make the headers' checksums right again."""
    changed = bytearray(of_bytes(data, random))
    headers = [at for at in range(0, len(changed), 512) if changed[at + 257 : at + 262] == b"ustar"]
    if headers and random.random() < 0.5:
        # Size and kind: what a parser believes.
        at = random.choice(headers)
        size = random.choice(
            (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000000001\0", b"-0000000200\0")
        )
        if random.random() < 0.5:
            changed[at + 124 : at + 136] = size
        else:
            changed[at + 156 : at + 157] = random.choice(
                (b"0", b"1", b"2", b"5", b"L", b"S", b"g", b"x")
            )
    for at in headers:
        if at + 512 <= len(changed):
            changed[at + 148 : at + 156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)
