"""The power-cut simulator: what may be left in the files when the power fails, and whether that is sound.

    recorder    files in memory, and the timeline of every change, flush and guest operation
    states      from a timeline to every content that a power cut may leave
    fsck        is a content a sound qcow2 image? Its own reading of the format, nothing of it shared with the package
    contents    what the guest finds in such an image, sector by sector, as tags
    model       what the guest may find there
    guest       operations on an open image, told to the timeline and to the model
    layouts     the images to begin with
    workloads   sequences of operations, by name
    explore     a workload, all its states, the oracle, and going on from a state
    spoil       damage done on purpose, for repairs
    mutants     the driver with one ordering rule left out
    harmless    those of them that do no harm, and why
    hunt        which workload shows a mutant, and the table in docs/qcow2.md
    campaign    many workloads on all cores

`python -m tests.faults.powercut --help`
"""
