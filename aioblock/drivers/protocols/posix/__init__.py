"""Files and block devices of the host: the drivers `file` and `host_device`, and what they are made of.

file, host_device     the drivers
driver                what both have in common: open, read, write, flush, reopen
opening               a path is opened, and found to be what was wanted
descriptor, threads   the open file, the calls that use it in threads, and those threads
transfer, aligned     whole reads and writes, and the memory for O_DIRECT
fallocate, holes      changing and finding out what is allocated
locks, attributes     lock bytes shared with QEMU's programs; advice for the filesystem
"""
