"""Random sequences of operations, done by aioblock and by QEMU's programs to twins, which must stay alike."""
