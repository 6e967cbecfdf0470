"""The error tree: fields, messages, and words put before them."""

import copy
import errno
import os
import pickle

import pytest

import aioblock
from aioblock.base.errors import (
    BlockError,
    CorruptImage,
    GraphError,
    ImageError,
    InvalidImage,
    NodeInUse,
    NotSupported,
    OptionError,
    PermissionConflict,
    UnsupportedFeature,
    UntrustedReference,
    message_of,
    with_context,
)


@pytest.mark.parametrize(
    ("kind", "parent"),
    [
        (NotSupported, OSError),
        (InvalidImage, ImageError),
        (CorruptImage, ImageError),
        (UnsupportedFeature, ImageError),
        (OptionError, BlockError),
        (UntrustedReference, BlockError),
        (PermissionConflict, GraphError),
        (NodeInUse, GraphError),
        (aioblock.JobError, BlockError),
    ],
)
def test_tree(kind, parent):
    assert issubclass(kind, parent)
    assert getattr(aioblock, kind.__name__) is kind


def test_a_block_error_is_no_failed_request():
    assert not issubclass(BlockError, OSError)
    assert not issubclass(NotSupported, BlockError)


def test_not_supported_has_its_errno():
    error = NotSupported("no snapshots here")
    assert error.errno == errno.ENOTSUP
    assert message_of(error) == "no snapshots here"
    assert message_of(NotSupported()) == os.strerror(errno.ENOTSUP)


def test_fields():
    assert ImageError("m", filename="f", offset=8).offset == 8
    assert UnsupportedFeature("m", features=("a", "b")).features == ("a", "b")
    assert OptionError("m", option="size").option == "size"
    assert UntrustedReference("m", filename="f", reference="../x").reference == "../x"
    assert GraphError("m", node="n").node == "n"


def test_message_of_an_os_error_is_without_number_and_name():
    error = OSError(errno.ENOENT, "No such file or directory", "x.qcow2")
    assert "[Errno 2]" in str(error)
    assert message_of(error) == "No such file or directory"
    assert message_of(OSError("odd")) == "odd"
    assert message_of(ValueError("other")) == "other"


def test_context_goes_before_the_message_and_leaves_the_rest():
    error = OSError(errno.ENOENT, "No such file or directory", "x.qcow2")
    assert with_context(error, "Could not open backing file: ") is error
    assert message_of(error) == "Could not open backing file: No such file or directory"
    assert (error.errno, error.filename) == (errno.ENOENT, "x.qcow2")

    corrupt = CorruptImage("bad table", filename="f", offset=3)
    with_context(with_context(corrupt, "b: "), "a: ")
    assert message_of(corrupt) == str(corrupt) == "a: b: bad table"
    assert (corrupt.filename, corrupt.offset) == ("f", 3)


def test_context_of_an_os_error_without_a_message():
    error = with_context(OSError("odd"), "before ")
    assert message_of(error) == "before odd"


@pytest.mark.parametrize(
    "error",
    [
        with_context(OptionError("m", option="o", filename="f"), "c: "),
        with_context(NotSupported("m"), "c: "),
        UntrustedReference("m", filename="f", reference="r"),
    ],
)
def test_errors_cross_processes(error):
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert message_of(again) == message_of(error)
        assert vars(again) == vars(error)
