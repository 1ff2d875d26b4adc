"""What can happen to a file: bits, runs, blocks, lengths, numbers and names, each drawn from a generator."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from random import Random

from fuzzing_seeds import Seed

from ptycho.io import extra
from ptycho.io.formats import SUFFIXES

_HEADER_BYTES = 2048
_BOUNDARIES = (0, 1, 2, 3, 7, 8, 15, 16, *(value for bits in (7, 8, 15, 16, 31, 32, 63, 64) for value in ((1 << bits) - 1, 1 << bits)), -2)
_NUMBERS = (b"0", b"-1", b"1", b"2", b"65535", b"65536", b"4294967296", b"9" * 19, b"9" * 400, b"1e308", b"-1e999", b"nan", b"inf", b"1e-300",
            b"0x10", b"", b"true", b"[]", b'"', b"{", b"<", b"\xff", b"\x00", b"1_0", "\u0663".encode())  # fmt: skip
_MEMBERS = ("../x.npy", "/x.npy", "a/b.npy", "x", "frame_shape.npy", "scan_shape.npy", "data.npy", "metadata.json", "\u00e5.npy", "x" * 300)
#: Suffixes of our own readers; the optional ones are a program of their own.
_SUFFIXES = sorted({*SUFFIXES} - {*extra.SUFFIXES} | {".bin", ".txt", ""})


class Special(Enum):
    """What may stand where a file is expected."""

    FOLDER = "folder"
    PIPE = "pipe"
    ENDLESS = "/dev/zero"
    DANGLING = "dangling link"

    def make(self, path: Path) -> None:
        """Put it there."""
        if self is Special.FOLDER:
            path.mkdir()
        elif self is Special.PIPE:
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero" if self is Special.ENDLESS else "not there")


@dataclass(frozen=True)
class Mutant:
    """Files of a data set of which one, ``changed``, is damaged; ``what`` says how."""

    opened: str
    files: dict[str, bytes | Special]
    changed: str
    what: str


def mutant(seed: Seed, rng: Random) -> Mutant:
    """One of the files of ``seed`` damaged in one to four ways, renamed, or replaced by what is no file."""
    files: dict[str, bytes | Special] = {**seed.files}
    opened, name, done = seed.opened, rng.choice(sorted(files)), []
    data = seed.files[name]
    if rng.random() < 0.015:
        files[name] = rng.choice(list(Special))
        return Mutant(opened, files, name, str(files[name]))
    if rng.random() < 0.02 and name == opened and seed.reader == "read":
        del files[name]
        opened = name = str(PurePath(name).with_suffix(rng.choice(_SUFFIXES)))
        done.append(f"renamed {opened}")
    if data.startswith(b"PK\x03\x04") and rng.random() < 0.6:
        data = _inside_zip(data, rng, done)
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
            data = _damage(data, rng, done)
    files[name] = data
    return Mutant(opened, files, name, ", ".join(done))


def _damage(data: bytes, rng: Random, done: list[str]) -> bytes:
    changes = {_flip: 8, _fill: 4, _boundary: 10, _number: 6, _cut: 3, _copy_block: 2, _drop_block: 2, _swap: 2, _extend: 1, _empty: 0.2}
    change = rng.choices(list(changes), list(changes.values()))[0]
    at = _place(data, rng)
    done.append(f"{change.__name__[1:]} at {at}")
    return change(data, at, rng)


def _place(data: bytes, rng: Random) -> int:
    """A byte, half of the time in the header."""
    end = min(len(data), _HEADER_BYTES) if rng.random() < 0.5 else len(data)
    return rng.randrange(end) if end else 0


def _flip(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if data else data


def _fill(data: bytes, at: int, rng: Random) -> bytes:
    length = min(rng.choice((1, 2, 4, 8, 16, 64, 512)), len(data) - at)
    return data[:at] + rng.choice((b"\x00", b"\xff", b" ", b"9")) * length + data[at + length :]


def _boundary(data: bytes, at: int, rng: Random) -> bytes:
    """A whole number at one of the limits of its type, or a floating-point number that is none."""
    size = rng.choice((1, 2, 4, 4, 8))
    at = at // size * size if rng.random() < 0.7 else at
    value = rng.choice(_BOUNDARIES) & ((1 << 8 * size) - 1)
    plain = value.to_bytes(size, rng.choice(("little", "big")))
    if size >= 4 and rng.random() < 0.2:
        plain = struct.pack(rng.choice("<>") + "fd"[size == 8], rng.choice((float("nan"), float("inf"), -1.0, 1e-38, 3e38)))
    return data[:at] + plain + data[at + size :]


def _number(data: bytes, at: int, rng: Random) -> bytes:
    """The next number that is written in digits."""
    found = re.compile(rb"[-+.0-9]{1,30}").search(data, at, at + 4096) or re.compile(rb"[-+.0-9]{1,30}").search(data)
    return data if found is None else data[: found.start()] + rng.choice(_NUMBERS) + data[found.end() :]


def _cut(data: bytes, at: int, rng: Random) -> bytes:
    return data[: max(1, at)]


def _copy_block(data: bytes, at: int, rng: Random) -> bytes:
    """A block once more, in place of what is elsewhere or between."""
    block, to = data[at : at + rng.choice((8, 40, 96, 512))], _place(data, rng)
    return data[:to] + block + data[to + (len(block) if rng.random() < 0.7 else 0) :]


def _drop_block(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + data[at + rng.choice((1, 2, 8, 96, 512)) :]


def _swap(data: bytes, at: int, rng: Random) -> bytes:
    length, to = rng.choice((2, 4, 8, 40)), _place(data, rng)
    first, second = sorted((at, to))
    if second + length > len(data) or second - first < length:
        return data
    return data[:first] + data[second : second + length] + data[first + length : second] + data[first : first + length] + data[second + length :]


def _extend(data: bytes, at: int, rng: Random) -> bytes:
    return data + rng.choice((b"\0", b"\n", data[:100], rng.randbytes(1000))) * rng.choice((1, 10))


def _empty(data: bytes, at: int, rng: Random) -> bytes:
    return b""


def _inside_zip(data: bytes, rng: Random, done: list[str]) -> bytes:
    """One of the packed files damaged, renamed or there twice, with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        compression = archive.infolist()[0].compress_type
    chosen = rng.randrange(len(members))
    name, content = members[chosen]
    if rng.random() < 0.1:
        name = rng.choice(_MEMBERS)
        done.append(f"member named {name[:20]}")
    else:
        content = _damage(content, rng, done)
    members[chosen] = (name, content)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in dict(members).items():
            archive.writestr(name, content)
    return out.getvalue()
