"""Kinds of arguments: names of images and of formats, completed by the shell."""

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["FormatName", "ImageName", "format_option", "image_argument"]


class ImageName(click.ParamType[str]):
    """A file name, or any other name of an image: `protocol:...`, `json:{...}`. Completed as a file name."""

    name = "image"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete it as a file."""
        return [CompletionItem(incomplete, type="file")]


class FormatName(click.ParamType[str]):
    """The name of a format; the library knows which there are."""

    name = "format"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The formats."""
        from .format_choice import format_names

        return [CompletionItem(name) for name in format_names() if name.startswith(incomplete)]


_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def image_argument(name: str = "image") -> _Decorator:
    """An argument that names an image."""
    return click.argument(name, type=ImageName(), metavar=name.upper())


def format_option(*names: str, help: str) -> _Decorator:
    """An option that names a format."""
    return click.option(*names, type=FormatName(), metavar="FORMAT", help=help)
