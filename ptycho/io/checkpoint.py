"""Checkpoints: all that a run needs to go on, to the last bit.

A checkpoint is a folder ``checkpoints/epoch-000123-000004`` (epoch in work, batches of it that are done): ``state.json``, the numbers and texts; one
or more ``tensors-00.safetensors``; and ``sha256.txt``, a list as the command sha256sum makes and checks it. It is written under another name,
brought to the disk and renamed, so that what has the name is complete; the one before stays. Nothing in it can be executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptycho.atomic import PART, sync_folder, unwritable, write_all
from ptycho.errors import DataError

logger = logging.getLogger("ptycho")

FOLDER, STATE, SUMS = "checkpoints", "state.json", "sha256.txt"
FORMAT = 2
#: The newest may be damaged: never fewer than two.
KEPT = 2
#: Tensors go into files of about this size, so that no copy of all of them is needed.
_FILE_BYTES = 256 << 20
_NAME = re.compile(r"epoch-\d{6,}-\d{6,}")

Tree = Any
"""Dictionaries, lists and tuples of tensors, arrays, numbers, texts and None."""


def save_checkpoint(run: Path, epoch: int, batch: int, tree: Tree) -> Path:
    """Write ``tree`` as the newest checkpoint of the folder ``run`` and remove all but the last two. Raises OutputError; older ones stay then."""
    folder = run / FOLDER
    final = folder / f"epoch-{epoch:06d}-{batch:06d}"
    temporary = folder / f".{final.name}{PART}"
    written = 0
    try:
        os.makedirs(folder, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        os.mkdir(temporary)
        sums = {}
        for name, content in _files(tree):
            written += len(content)
            _write(temporary / name, content)
            sums[name] = hashlib.sha256(content).hexdigest()
        _write(temporary / SUMS, _listed(sums).encode())
        sync_folder(temporary)
        if final.exists():  # one that was damaged, and has been computed again
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise unwritable(final, error, written) from None
    for old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """All complete ones, the newest last."""
    try:
        found = [p for p in (run / FOLDER).iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda p: tuple(int(number) for number in p.name.split("-")[1:]))


def load_latest(run: Path) -> tuple[Path, Tree] | None:
    """The newest checkpoint that is sound, a damaged one is told of; None without any. Raises DataError when there are some and all are damaged."""
    found = checkpoints(run)
    problems = []
    for path in reversed(found):
        try:
            return path, load_checkpoint(path)
        except DataError as error:
            problems.append(str(error))
            logger.warning(str(error))
    if problems:
        raise DataError(f"{run / FOLDER}: no checkpoint is sound ({problems[0]}); begin anew with --fresh")
    return None


def load_checkpoint(path: Path) -> Tree:
    """What was saved there, every byte of it checked first. Raises DataError for a checkpoint that is damaged or of a newer version."""
    try:
        # What is checked is what is used: nothing is read twice.
        contents = {p.name: p.read_bytes() for p in path.iterdir()}
        sums = contents.pop(SUMS)
        if sums != _listed({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}).encode():
            raise DataError(f"{path}: damaged: its files do not have the checksums of {SUMS}")
        state = json.loads(contents[STATE])
        if state["format"] > FORMAT:
            raise DataError(f"{path}: written by a newer ptycho (format {state['format']}, this one reads {FORMAT}); update ptycho")
        return _unpacked(state["tree"], _tensors(contents))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a complete checkpoint ({error})") from None


def discard(run: Path) -> None:
    """Remove all checkpoints: the run is complete."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)


def _listed(sums: dict[str, str]) -> str:
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def _files(tree: Tree) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files, one after the other."""
    import safetensors.torch  # late: readers of data do not need it

    tensors: list[Tensor] = []
    packed = _packed(tree, tensors)
    group: dict[str, Tensor] = {}
    number = size = 0
    for place, tensor in enumerate(tensors):
        group[str(place)] = tensor
        size += tensor.numel() * tensor.element_size()
        if size >= _FILE_BYTES or place == len(tensors) - 1:
            yield f"tensors-{number:02d}.safetensors", safetensors.torch.save(group)
            group, number, size = {}, number + 1, 0
    yield STATE, json.dumps({"format": FORMAT, "tree": packed}).encode()


def _tensors(contents: dict[str, bytes]) -> dict[str, Tensor]:
    """Tensors of all files, taken out of ``contents``."""
    import safetensors.torch

    found: dict[str, Tensor] = {}
    for name in [name for name in contents if name.endswith(".safetensors")]:
        found |= {key: tensor.clone() for key, tensor in safetensors.torch.load(contents.pop(name)).items()}
    return found


def _packed(tree: Tree, tensors: list[Tensor]) -> Tree:
    """``tree`` as JSON has it; its tensors go to the list, and what JSON does not have is a dictionary with one key that begins with $."""
    match tree:
        case None | bool() | int() | float() | str():
            return tree
        case Tensor() if not tree.is_contiguous() and (axes := _axes(tree)) != sorted(axes):
            return {"$axes": [axes, _packed(tree.permute(axes), tensors)]}
        case Tensor():
            # A complex number is a pair of real ones: not all versions of the format know it.
            flat = torch.view_as_real(tree.detach().resolve_conj()) if tree.is_complex() else tree.detach()
            tensors.append(flat.cpu().contiguous())
            return {"$complex" if tree.is_complex() else "$tensor": str(len(tensors) - 1)}
        case np.ndarray():
            return {"$array": _packed(torch.from_numpy(np.ascontiguousarray(tree)), tensors)}
        case dict():
            return {"$dict": [[_packed(key, tensors), _packed(value, tensors)] for key, value in tree.items()]}
        case tuple():
            return {"$tuple": [_packed(item, tensors) for item in tree]}
        case list():
            return [_packed(item, tensors) for item in tree]
    raise TypeError(f"{type(tree).__name__} cannot be kept in a checkpoint")


def _axes(tensor: Tensor) -> list[int]:
    """Axes in the order in which they lie in memory: a matrix by columns is given back by columns, or its products differ in the last bit."""
    return sorted(range(tensor.ndim), key=lambda axis: tensor.stride()[axis], reverse=True)


def _unpacked(tree: Tree, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(tree, list):
        return [_unpacked(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    match kind:
        case "$tensor":
            return tensors[value]
        case "$complex":
            return torch.view_as_complex(tensors[value])
        case "$axes":
            axes, tensor = value[0], _unpacked(value[1], tensors)
            return tensor.permute([axes.index(axis) for axis in range(len(axes))])
        case "$array":
            return _unpacked(value, tensors).numpy()
        case "$dict":
            return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in value}
        case "$tuple":
            return tuple(_unpacked(item, tensors) for item in value)
    raise ValueError(f"{kind} is no part of a checkpoint")
