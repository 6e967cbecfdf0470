"""Layer 6: what programs and services call. One file a subject; `aioblock` itself has all the names.

An *image* is given as a name (a string, a path, or options as `open` takes them), or as an open `BlockBackend`. A name
is opened for the call and closed at its end, with whatever became of it; an open image is used, and stays open.
"""
