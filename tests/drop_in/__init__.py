"""Random command lines on random images, given to qemu-img and to aioblock-img: whatever one can see must be the same.

A *shelf* is a folder of images drawn from a seed. A *case* is one command line on it: each program runs it in a copy of
the shelf of its own, under the same relative names. Exit status, both outputs and every file are then compared.
"""
