"""`make conformance`: QEMU's own block tests (qemu-iotests), run against the programs.

`suite` gets the tests, `programs` gives them what to call, `verdicts` runs one, `listed` knows which are to pass, and
`__main__` is the command. Nothing of the suite, which is under another licence, is part of the project.
"""
