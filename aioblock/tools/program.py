"""What every program does alike: its name, its errors, its event loop, and how it opens an image.

Start-up time counts here (`info` is expected within 150 ms), so asyncio, uvloop and the library are imported where
they are used.
"""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioblock import BlockBackend, NamedObject

__all__ = [
    "CACHE_MODES",
    "DISCARD_MODES",
    "Interrupted",
    "ProgramError",
    "error_text",
    "define_object",
    "fail",
    "finish",
    "image_options",
    "objects",
    "open_image",
    "print_error",
    "print_version",
    "program_name",
    "run",
]

atexit.register(gc.freeze)
"""The process ends: looking once more for garbage among all that was imported takes as long as a short command."""

CACHE_MODES = {
    "none": "none",
    "off": "none",
    "directsync": "directsync",
    "writeback": "writeback",
    "unsafe": "unsafe",
    "writethrough": "writethrough",
}
"""The names of `-t` and `-T`, and what the library calls them."""

DISCARD_MODES = {"ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
"""The names of `-d` and `discard=`, and what the library calls them."""


class ProgramError(Exception):
    """The program ends with this message, printed as an error if it is not empty, and this exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Interrupted(ProgramError):
    """A signal ended the program; everything that was under way has been cancelled and cleaned up."""

    def __init__(self, signum: int) -> None:
        super().__init__("", 128 + signum)


def program_name() -> str:
    """The name that the program was called by: the last part of argv[0]."""
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "aioblock"


def print_error(message: str, end: str = "\n") -> None:
    """Print `program: message` to stderr."""
    print(f"{program_name()}: {message}", end=end, file=sys.stderr, flush=True)


def fail(message: str, status: int = 1) -> int:
    """Print an error; returns the exit status, to be returned from `main`."""
    print_error(message)
    return status


def print_version() -> None:
    """Print what `--version` prints."""
    import aioblock

    print(f"{program_name()} version {aioblock.__version__} (aioblock)")


def error_text(error: BaseException) -> str:
    """The message of an error without errno or Python's decorations."""
    from aioblock import message_of

    return message_of(error)


objects: "dict[str, NamedObject]" = {}
"""What `--object` defined, by id."""


def define_object(definition: str, status: int = 1) -> None:
    """Take the value of one `--object`. Raises: ProgramError with that status, or 0 where it asked for help."""
    from aioblock import BlockError, make_object

    words = [word for word in definition.replace(",,", "").split(",") if word in ("help", "?")]
    if words and not definition.startswith("{"):
        _print_object_help(definition.partition(",")[0].removeprefix("qom-type="))
        raise ProgramError("", 0)
    try:
        id, made = make_object(definition, objects)
    except (OSError, BlockError) as error:
        raise ProgramError(error_text(error), status) from error
    objects[id] = made


def _print_object_help(kind: str) -> None:
    from aioblock import OBJECT_TYPES

    if kind in OBJECT_TYPES:
        print(f"{kind} options:")
        for name, value in sorted(OBJECT_TYPES[kind].properties.items()):
            print(f"  {name}=<{value}>")
        return
    print("List of user creatable objects:")
    for name in sorted(OBJECT_TYPES):
        print(f"  {name}")


# Opening


def image_options(text: str) -> dict[str, Any]:
    """The options in an argument of `--image-opts`, nested as the library takes them. Raises: OptionError."""
    from aioblock import OptionError, nest, parse_keyval

    if not text:
        raise OptionError("Must specify either driver or file")
    flat = parse_keyval(text, implied="file")
    if "file" in flat and not any(key.startswith("driver") for key in flat):
        # The argument is the name of a node or device of a running machine: there is none here.
        raise OptionError(f"Cannot find device='{flat['file']}' nor node-name='{flat['file']}'")
    return nest(flat)


async def open_image(
    name: str | dict[str, Any],
    *,
    image_opts: bool = False,
    format: str | None = None,
    writable: bool = False,
    resize: bool = False,
    cache: str = "writeback",
    aio: str | None = None,
    discard: str = "ignore",
    detect_zeroes: str = "off",
    copy_on_read: bool = False,
    force_share: bool = False,
    share_write: bool = True,
    backing: bool = True,
    for_check: bool = False,
    metadata_only: bool = False,
    options: dict[str, Any] | None = None,
) -> "BlockBackend":
    """Open an image as the programs do: names inside images are followed wherever they lead.

    `name` is a file name, a `json:` name, options, or with `image_opts` a list of them. `cache` and `discard` take the
    names of the command line. Raises: ProgramError for a wrong name of those; what `aioblock.open` raises.
    """
    import aioblock

    if cache not in CACHE_MODES:
        raise ProgramError(f"Invalid cache option: {cache}")
    if discard not in DISCARD_MODES:
        raise ProgramError(f"Invalid discard option: {discard}")
    described = image_options(name) if image_opts and isinstance(name, str) else name
    if format is not None and isinstance(described, str) and described.startswith("json:"):
        options, format = {**(options or {}), "driver": format}, None  # what the command line says goes before the name
    disk = await aioblock.open(
        described,
        format=format,
        options=options,
        writable=writable,
        resize=resize,
        cache=CACHE_MODES[cache],
        aio=aio,
        discard=DISCARD_MODES[discard],
        detect_zeroes=detect_zeroes,
        copy_on_read=copy_on_read,
        force_share=force_share,
        share_write=share_write,
        backing=backing,
        probe=True,
        for_check=for_check,
        metadata_only=metadata_only,
        objects=objects,
        trust=aioblock.TRUST_ALL,
    )
    named = "driver" in (options or {}) or _names_driver(described)
    if writable and format is None and disk.node.driver.name == "raw" and not named:
        print(
            f"WARNING: Image format was not specified for '{disk.name}' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, "
            "write operations on block 0 will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.",
            file=sys.stderr,
            flush=True,
        )
    return disk


def _names_driver(described: str | dict[str, Any]) -> bool:
    return "driver" in described if isinstance(described, dict) else described.startswith("json:")


# Running


def _new_loop(fast: bool) -> Any:
    if fast:
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.new_event_loop()
    import asyncio

    return asyncio.new_event_loop()


@contextmanager
def _log_shown() -> Iterator[None]:
    """Print to stderr what the library logs, such as a corruption it found, behind what was printed before."""
    import logging

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sys.stdout.flush()
            print(record.getMessage(), file=sys.stderr, flush=True)

    log = logging.getLogger("aioblock")
    handler = Shown()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def run(main: Callable[[], Coroutine[Any, Any, int | None]], *, fast: bool = True) -> int:
    """Run a coroutine function to its end; returns what it returns, None being 0.

    `fast` takes uvloop where it is installed: right for whoever moves data, and costs start-up time. Ctrl-C, SIGTERM
    and SIGHUP cancel the coroutine and wait until it has cleaned up. Raises: Interrupted then; what it raises.
    """
    import asyncio

    caught: list[int] = []
    with _log_shown(), asyncio.Runner(loop_factory=lambda: _new_loop(fast)) as runner:
        loop = runner.get_loop()

        async def guarded() -> int | None:
            task = asyncio.current_task()
            assert task is not None

            def stop(signum: int) -> None:
                caught.append(signum)
                task.cancel()  # one that is done already is not cancelled any more

            try:
                for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup, or a shell's background job
                        # Until the loop is closed: an interrupt while that goes on would break it off half way.
                        loop.add_signal_handler(signum, stop, signum)
            except (NotImplementedError, RuntimeError, ValueError, AttributeError):
                pass  # not the main thread, or a system without them: then only KeyboardInterrupt is there
            try:
                return await main()
            except asyncio.CancelledError as error:
                for note in getattr(error, "__notes__", ()):  # what is incomplete now
                    print_error(note)
                raise

        try:
            return runner.run(guarded()) or 0
        except asyncio.CancelledError:
            if not caught:
                raise
            raise Interrupted(caught[0]) from None


def finish(main: Callable[[], int | None]) -> int:
    """Call a program's body and turn what ends it early into messages and an exit status.

    A reader of stdout that went away (`... | head`) ends the program silently.
    """
    try:
        try:
            status = main() or 0
        finally:
            sys.stdout.flush()
    except ProgramError as error:
        if error.message:
            print_error(error.message)
        return error.status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _forget_stdout()
        return 1
    except OSError as error:  # met at the close of an image, when all else had gone well
        print_error(error_text(error))
        return 1
    finally:
        objects.clear()
    return status


def _forget_stdout() -> None:
    """Let the interpreter's last flush of stdout go nowhere, instead of complaining about a closed pipe."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
