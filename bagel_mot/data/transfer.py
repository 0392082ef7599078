"""Messages between processes: a value, pickled, and behind it the bytes of its tensors as they are.

The bytes are written from where they lie and read into where they stay, so each crosses the pipe once and is never
copied besides. Nothing is shared between processes: neither the room for shared memory, of which a container has 64 MB,
nor the number of open files matters.
"""

from __future__ import annotations

import io
import os
import pickle
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

_POSIX = os.name == "posix"


class _Pickler(pickle.Pickler):
    """Pickles tensors as NumPy arrays, whose bytes can be left out; the general way for tensors copies them twice."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


def send(connection: Connection, value: Any) -> None:
    """Sends a value, whose tensors are on the CPU.

    Raises:
        OSError: the other end is closed.
    """
    buffers: list[memoryview] = []
    _Pickler(out := io.BytesIO(), protocol=5, buffer_callback=lambda made: buffers.append(made.raw())).dump(value)
    connection.send_bytes(pickle.dumps((out.getvalue(), [buffer.nbytes for buffer in buffers])))
    for buffer in buffers:
        _write(connection, buffer)


def receive(connection: Connection) -> Any:
    """The next value that the other end sent, waited for; a tensor in several places of it is one here as well.

    Raises:
        EOFError: the other end is closed.
    """
    value, sizes = pickle.loads(connection.recv_bytes())
    buffers = [np.empty(size, dtype=np.uint8) for size in sizes]
    for buffer in buffers:
        _read(connection, buffer.data)
    return pickle.loads(value, buffers=buffers)


def _write(connection: Connection, view: memoryview) -> None:
    if not _POSIX:
        connection.send_bytes(view)
        return
    while view:
        view = view[os.write(connection.fileno(), view) :]


def _read(connection: Connection, view: memoryview) -> None:
    if not _POSIX:
        connection.recv_bytes_into(view)
        return
    while view:
        count = os.readv(connection.fileno(), [view])
        if not count:
            raise EOFError
        view = view[count:]
