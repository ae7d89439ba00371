"""Writes a quantized student as one C99 file with a header.

``student.c`` holds the weights as constants, the two buffers of the maps, and `engine.c`, the same for every student.
``main.c`` is an example. ``student.json`` has the sizes in bytes.
"""

import string
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import InputError
from kdedge.export.c99.network import Layer, Network
from kdedge.files import write_atomic, write_json
from kdedge.ownership import holds_nothing, not_ours

__all__ = ["C_FILES", "c_sizes", "write_c"]

C_FILES = ("student.c", "student.h", "main.c", "student.json")
_PLAIN = (string.ascii_letters + string.digits + " -_.,:()").encode()
_LINE = 110  # characters
_ROW_BYTES = 4 * 18  # a `layer` of 15 numbers and 3 pointers
_MARK, _JSON_MARK = "Written by kdedge export-c.", '"constant_bytes": '  # in files that may be replaced
_BEGIN = f"""/* {_MARK} C99, integer arithmetic only. */

#include <string.h>

#include "student.h"

typedef char float_has_32_bits[sizeof(float) == 4 ? 1 : -1];

"""
_STRUCT = """typedef struct {
    int32_t height, width, channels; /* of the input */
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width, stride_y, stride_x, pad_top, pad_left;
    int32_t pool;           /* side and stride of the max-pool, or 1 */
    int32_t zero, out_zero; /* zero points */
    const int8_t *weights;  /* [out_channels][kernel_height][kernel_width][channels] */
    const int32_t *bias;    /* [out_channels] */
    const uint32_t *scales; /* [out_channels], the bits of float32 */
} layer;
"""


def write_c(network: Network, out_dir: Path) -> dict[str, int]:
    """Write the C files of a student into ``out_dir``; return the content of ``student.json``, from `c_sizes`.

    Raises:
        InputError: ``out_dir`` is not a folder, or has files that export-c did not write.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir} is not a folder", "give another --out")
    for path, mark in zip(
        (out_dir / name for name in C_FILES), (_MARK, _MARK, _own("main.c"), _JSON_MARK), strict=True
    ):
        if not holds_nothing(path) and not (path.is_file() and mark.encode() in path.read_bytes()):
            raise not_ours(path, "it is not a file of export-c, or was edited")
    sizes = c_sizes(network)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(out_dir / "student.h", _header(network).encode())
    write_atomic(out_dir / "student.c", "".join(_source(network)).encode())
    write_atomic(out_dir / "main.c", _own("main.c").encode())
    write_json(out_dir / "student.json", sizes)
    return sizes


def c_sizes(network: Network) -> dict[str, int]:
    """Return the sizes of ``student.c``, computed from the network.

    Returns:
        ``constant_bytes`` (weights, biases and scales) and ``table_bytes`` (layers and labels, with pointers of 32
        bits) in flash, ``buffer_bytes`` (static) and ``input_bytes`` (an image of the caller) in RAM, and ``macs`` per
        image.
    """
    layers = (*network.convs, network.classifier)
    return {
        "constant_bytes": sum(item.weights.nbytes + item.bias.nbytes + item.scales.nbytes for item in layers),
        "table_bytes": _ROW_BYTES * len(layers) + sum(5 + len(label.encode()) for label in network.labels),
        "buffer_bytes": sum(_buffer_bytes(network)),
        "input_bytes": np.prod(layers[0].shape).item(),
        "macs": sum(item.macs for item in layers),
    }


def _buffer_bytes(network: Network) -> list[int]:
    """Return the sizes of the two buffers, which take the outputs of the layers in turn; the last is the mean."""
    maps = [*(np.prod(item.output).item() for item in network.convs), network.classifier.shape[2]]
    return [max(maps[0::2]), max(maps[1::2])]


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _header(network: Network) -> str:
    height, width, channels = network.convs[0].shape
    color = "RGB" if channels == 3 else "grey"
    return f"""/* An INT8 image classifier. {_MARK} */

#ifndef STUDENT_H
#define STUDENT_H

#include <stdint.h>

#define STUDENT_HEIGHT {height}
#define STUDENT_WIDTH {width}
#define STUDENT_PIXELS {height * width * channels} /* bytes of an image: {color}, rows from top to bottom */
#define STUDENT_CLASSES {len(network.labels)}

extern const char *const student_labels[STUDENT_CLASSES];

/* Returns the class of an image and writes its logits (IEEE 754 binary32). Not reentrant. */
int student_classify(const uint8_t pixels[STUDENT_PIXELS], float logits[STUDENT_CLASSES]);

#endif
"""


def _source(network: Network) -> Iterator[str]:
    """Yield the parts of ``student.c``."""
    yield _BEGIN
    yield "const char *const student_labels[STUDENT_CLASSES] = {\n"
    yield from (f"    {_string(label)},\n" for label in network.labels)
    yield f"}};\n\n{_STRUCT}\n"
    layers = (*network.convs, network.classifier)
    for index, item in enumerate(layers):
        yield _array("int8_t", f"weights_{index}", item.weights)
        yield _array("int32_t", f"bias_{index}", item.bias)
        yield _array("uint32_t", f"scales_{index}", item.scales.view(np.uint32))
    yield "static const layer layers[] = {\n"
    yield from (_row(index, item) for index, item in enumerate(layers))
    yield "};\n\n"
    yield f"#define MEAN_SCALE {network.mean_scale.view(np.uint32)}u /* {network.mean_scale} */\n"
    names = ("MEAN_ZERO", "MEAN_OUT_ZERO", "EVEN_BYTES", "ODD_BYTES")
    values = (*network.mean_zero_points, *_buffer_bytes(network))
    yield from (f"#define {name} {value}\n" for name, value in zip(names, values, strict=True))
    yield "\n" + _own("engine.c")


def _row(index: int, item: Layer) -> str:
    _, kernel_height, kernel_width, _ = item.weights.shape
    numbers = (
        *item.shape, *item.output, kernel_height, kernel_width, *item.strides, *item.pads[:2], item.pool,
        *item.zero_points,
    )  # fmt: skip
    return f"    {{{', '.join(map(str, numbers))}, weights_{index}, bias_{index}, scales_{index}}},\n"


def _array(kind: str, name: str, values: npt.NDArray[Any]) -> str:
    """Return the definition of a constant array."""
    lines, line = [], ""
    suffix = "u" if kind == "uint32_t" else ""
    for value in values.ravel().tolist():
        # The literal 2147483648 exceeds int32_t, and so does its negative.
        text = "INT32_MIN," if value == -(2**31) else f"{value}{suffix},"
        if len(line) + len(text) > _LINE:
            lines.append(line)
            line = ""
        line += text
    return f"static const {kind} {name}[{values.size}] = {{\n" + "\n".join([*lines, line]) + "\n};\n\n"


def _string(text: str) -> str:
    """Return a C string literal of the UTF-8 bytes."""
    return '"' + "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in text.encode()) + '"'
