"""INT4 as it is written here, the layout of `Int4Matrix`.

X.weight                    uint8 (out/64, in, 32)
X.weight_scale_and_middle   bfloat16 (in/group, out, 2)
"""

from __future__ import annotations

from bagel_mot.checkpoint.formats.quantised_layouts import StoredTensor, unknown
from bagel_mot.checkpoint.source import SafetensorsFiles
from bagel_mot.model.quant import Int4Matrix, QuantisedMatrix

_GROUPS = (32, 64, 128)


def recognise(files: SafetensorsFiles, name: str) -> StoredTensor | None:
    """A matrix in INT4; None for all other tensors.

    Raises:
        CheckpointError: its parts do not fit together.
    """
    numbers = f"{name}_scale_and_middle"
    if numbers not in files.names():
        return None
    words, found = files.shape(name), files.shape(numbers)
    shape = (found[1], words[1]) if len(found) == 3 and len(words) == 3 else (0, 0)
    if (
        (files.dtype(name), files.dtype(numbers)) != ("U8", "BF16")
        or 0 in shape
        or words != (shape[0] // 64, shape[1], 32)
        or found[2] != 2
        or shape[0] % 64
        or shape[1] % found[0]
        or shape[1] // found[0] not in _GROUPS
    ):
        raise unknown(files, name, "INT4 is uint8 (out/64, in, 32) with bfloat16 (in/group, out, 2)")

    def load(files: SafetensorsFiles) -> QuantisedMatrix:
        return Int4Matrix(shape, {"values": files.read(name), "scale_and_middle": files.read(numbers)})

    return StoredTensor(f"INT4 in groups of {shape[1] // found[0]}", shape, (name, numbers), load, Int4Matrix.format)
