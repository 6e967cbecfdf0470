"""The numbers of the NBD protocol, under the specification's names without `NBD_`, and the caps of this package.

Everything on the wire is big-endian.
"""

from enum import IntEnum
from typing import Final

DEFAULT_PORT: Final = 10809

# Magic numbers.
INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OLDSTYLE_MAGIC: Final = 0x00420281861253
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

# Flags of the handshake (server), and of the client's answer: the same bits.
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

# Flags of an export.
FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_ROTATIONAL: Final = 1 << 4
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_RESIZE: Final = 1 << 9
FLAG_SEND_CACHE: Final = 1 << 10
FLAG_SEND_FAST_ZERO: Final = 1 << 11
FLAG_BLOCK_STATUS_PAYLOAD: Final = 1 << 12

# Options.
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10
OPT_EXTENDED_HEADERS: Final = 11

OPTION_NAMES: Final = {
    OPT_EXPORT_NAME: "EXPORT_NAME",
    OPT_ABORT: "ABORT",
    OPT_LIST: "LIST",
    OPT_STARTTLS: "STARTTLS",
    OPT_INFO: "INFO",
    OPT_GO: "GO",
    OPT_STRUCTURED_REPLY: "STRUCTURED_REPLY",
    OPT_LIST_META_CONTEXT: "LIST_META_CONTEXT",
    OPT_SET_META_CONTEXT: "SET_META_CONTEXT",
    OPT_EXTENDED_HEADERS: "EXTENDED_HEADERS",
}

# Replies to options; with bit 31 they are errors.
REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_ERROR + 1
REP_ERR_POLICY: Final = REP_ERROR + 2
REP_ERR_INVALID: Final = REP_ERROR + 3
REP_ERR_PLATFORM: Final = REP_ERROR + 4
REP_ERR_TLS_REQD: Final = REP_ERROR + 5
REP_ERR_UNKNOWN: Final = REP_ERROR + 6
REP_ERR_SHUTDOWN: Final = REP_ERROR + 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_ERROR + 8
REP_ERR_TOO_BIG: Final = REP_ERROR + 9
REP_ERR_EXT_HEADER_REQD: Final = REP_ERROR + 10

# Kinds of information in replies to INFO and GO.
INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# Commands.
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7
CMD_RESIZE: Final = 8

COMMAND_NAMES: Final = {
    CMD_READ: "READ",
    CMD_WRITE: "WRITE",
    CMD_DISC: "DISC",
    CMD_FLUSH: "FLUSH",
    CMD_TRIM: "TRIM",
    CMD_CACHE: "CACHE",
    CMD_WRITE_ZEROES: "WRITE_ZEROES",
    CMD_BLOCK_STATUS: "BLOCK_STATUS",
    CMD_RESIZE: "RESIZE",
}

# Flags of commands.
CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4
CMD_FLAG_PAYLOAD_LEN: Final = 1 << 5

# Chunks of structured and extended replies; with bit 15 they are errors.
REPLY_FLAG_DONE: Final = 1 << 0
REPLY_TYPE_NONE: Final = 0
REPLY_TYPE_OFFSET_DATA: Final = 1
REPLY_TYPE_OFFSET_HOLE: Final = 2
REPLY_TYPE_BLOCK_STATUS: Final = 5
REPLY_TYPE_BLOCK_STATUS_EXT: Final = 6
REPLY_TYPE_IS_ERROR: Final = 1 << 15
REPLY_TYPE_ERROR: Final = REPLY_TYPE_IS_ERROR + 1
REPLY_TYPE_ERROR_OFFSET: Final = REPLY_TYPE_IS_ERROR + 2

# Metadata contexts, and the flags of their extents.
CONTEXT_ALLOCATION: Final = "base:allocation"
STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1
CONTEXT_ALLOCATION_DEPTH: Final = "qemu:allocation-depth"
CONTEXT_DIRTY_BITMAP: Final = "qemu:dirty-bitmap:"  # the name of the bitmap follows
STATE_DIRTY: Final = 1 << 0


class Mode(IntEnum):
    """What headers look like once an export is chosen. A greater one has all that a smaller one has."""

    SIMPLE = 0
    STRUCTURED = 1
    EXTENDED = 2


# Caps: what the specification bounds, or what no honest peer needs.
MAX_STRING: Final = 4096
"""Bytes of a name, a description, a query or an error message."""
MAX_OPTION: Final = 1 << 16
"""Bytes of data of an option, and of a reply to one; longer ones end the connection."""
MAX_OPTIONS: Final = 1 << 14
"""How many options a client may send before it chooses an export."""
MAX_OPTION_REPLIES: Final = 1 << 16
"""How many replies a server may send to one option."""
MAX_QUERIES: Final = 1 << 10
"""How many metadata contexts may be asked for in one option."""
MAX_PAYLOAD: Final = 1 << 25
"""Bytes that a read or write carries, where no maximum block size is told."""
MAX_ERROR_CHUNK: Final = 6 + MAX_STRING + 8
MAX_EXTENTS: Final = 1 << 20
"""How many extents of one context a reply may have."""
MAX_LENGTH_32: Final = (1 << 32) - 1
"""The greatest length in a compact header, and "no limit" as a maximum block size."""
