"""The C code of the reference student on an emulated Cortex-M without FPU, compared with onnxruntime bit for bit.

    apt install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
    python experiments/cortex_m.py [IMAGES] [cortex-m3|cortex-m4] [--data-dir PATH]

Takes every N-th of the 10,000 test images of CIFAR-10. An image takes 0.3 s of one core.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from kdedge.benchmarks.session import open_model, run_model
from kdedge.export.c99.check import run_program
from kdedge.export.c99.network import read_network
from kdedge.export.c99.source import write_c
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.sources import open_dataset

__all__ = ["BOARDS", "build", "emulator"]

MODEL = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "bundle" / "student.int8.onnx"
BOARDS = {"cortex-m3": "mps2-an385", "cortex-m4": "mps2-an386"}
_MEMORY = """
ENTRY(_start)
SECTIONS {
  . = 0;
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) KEEP(*(.init)) KEEP(*(.fini)) *(.init_array*) }
  .ARM.exidx : { *(.ARM.exidx*) }
  . = 0x20000000;
  .data : { *(.data*) }
  __bss_start__ = .;
  .bss : { *(.bss*) *(COMMON) }
  __bss_end__ = .; end = .; __end__ = .; _end = .;
}
"""
_VECTORS = """
extern void _start(void);
const void *const vectors[2] __attribute__((section(".vectors"), used)) = {(void *)0x20400000, (void *)_start};
"""


def build(folder: Path, cpu: str, work: Path) -> Path:
    """Compile the C files in ``folder`` for a CPU of `BOARDS`; return the program."""
    (work / "mps2.ld").write_text(_MEMORY)
    (work / "vectors.c").write_text(_VECTORS)
    target = [f"-mcpu={cpu}", "-mthumb", "--specs=rdimon.specs", "-T", "mps2.ld", "vectors.c"]
    sources = [(folder / name).resolve() for name in ("main.c", "student.c")]
    command = ["arm-none-eabi-gcc", *target, "-std=c99", "-O3", *sources, "-o", f"student-{cpu}"]
    subprocess.run(command, cwd=work, check=True)
    return work / f"student-{cpu}"


def emulator(cpu: str) -> list[str]:
    """Return the command that runs a program from `build`, which follows."""
    semihosting = ["-semihosting-config", "enable=on,target=native"]
    quiet = ["-nographic", "-monitor", "none", "-serial", "none"]
    return ["qemu-system-arm", "-M", BOARDS[cpu], *quiet, *semihosting, "-kernel"]


def main() -> None:
    """Compare the logits, and print the number of identical images and the seconds for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="?", type=int, default=1000)
    parser.add_argument("cpu", nargs="?", choices=BOARDS, default="cortex-m3")
    parser.add_argument("--data-dir", default="", help="folder with CIFAR-10 (default: cache or download)")
    options = parser.parse_args()
    images = open_dataset(build_config({"data": {"source": "cifar10", "dir": options.data_dir}}).data).test().images
    pixels = np.ascontiguousarray(images[:: len(images) // options.images][: options.images])
    logits = run_model(open_model(MODEL), pixels)
    with tempfile.TemporaryDirectory() as folder:
        write_c(read_network(MODEL), Path(folder))
        program = build(Path(folder), options.cpu, Path(folder))
        start = time.monotonic()
        _, bits = run_program([*emulator(options.cpu), program], pixels, logits.shape[1])
    same = int((bits == logits.view(np.uint32)).all(1).sum())
    seconds = (time.monotonic() - start) / len(pixels)
    print(f"{options.cpu}: {same} of {len(pixels)} images have identical logits, {seconds:.2f} s for each")


if __name__ == "__main__":
    main()
