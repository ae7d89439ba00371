"""An INT8 model on CPUs that are not here, under qemu."""
