"""An INT8 model on other CPUs, emulated by qemu."""
