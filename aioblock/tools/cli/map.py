"""`map`: what every layer of a chain holds, as a picture, in numbers, and run by run."""

from typing import TYPE_CHECKING, Any

import click

from .access import Access, reading_options
from .failures import Failure
from .opening import opened
from .parameters import image_argument
from .progress import WorkProgress
from .quantities import SIZE, exact
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from .layer_map import LayerMap
    from .terminal import Terminal

__all__ = ["command"]


@subcommand("map", long=True, short_help="what every layer of a chain holds, as a picture")
@image_argument()
@click.option(
    "--plot", metavar="FILE", type=click.Path(dir_okay=False), help="Draw the picture into FILE: .svg, .png or .pdf."
)
@click.option("--runs", is_flag=True, help="List every run of every layer.")
@click.option("--start", type=SIZE, default=0, help="Begin at this offset.  [default: 0]")
@click.option("--length", type=SIZE, help="Show so many bytes.  [default: up to the end]")
@reading_options
def command(
    terminal: "Terminal",
    image: str,
    plot: str | None,
    runs: bool,
    start: int,
    length: int | None,
    access: Access,
) -> None:
    """Show what every layer of IMAGE's chain holds: one row a layer, the top one above, offsets from left to right.

    A layer holds data, perhaps compressed, or says that a range reads as zeroes, or leaves it to the layers below. What
    is read from the image is what the first layer holds that leaves it not open.
    """
    layers: list[LayerMap] = []

    async def body() -> None:
        from .layer_map import map_layer

        async with opened(terminal, image, access) as disk:
            if start > disk.length:
                raise Failure(f"{image} is {exact(disk.length)} long: nothing lies at offset {start}")
            with WorkProgress(terminal, "map") as progress:
                for depth, node in enumerate(disk.layers(), 1):
                    layers.append(await map_layer(disk, node, depth, start, length, progress))

    work(body)
    end = max(layer.length for layer in layers)
    if length is not None:
        end = min(end, start + length)
    if plot is not None:
        from .map_plot import plot_map

        plot_map(plot, image, layers, start, end)
    terminal.result(_document(image, layers, start, end, plot))
    if runs:
        _list(terminal, layers)
    elif plot is None:
        from .map_picture import draw_map

        draw_map(terminal, layers, start, end)
    else:
        terminal.print(f"{plot}: the map of {image}")


def _document(image: str, layers: "list[LayerMap]", start: int, end: int, plot: str | None) -> dict[str, Any]:
    from .layer_map import totals

    return {
        "image": image,
        "start": start,
        "end": end,
        "plot": plot,
        "layers": [
            {
                "depth": layer.depth,
                "filename": layer.filename,
                "format": layer.format,
                "length": layer.length,
                "totals": totals(layer),
                "runs": [{"offset": offset, "length": nbytes, "kind": kind} for offset, nbytes, kind in layer.runs()],
            }
            for layer in layers
        ],
    }


def _list(terminal: "Terminal", layers: "list[LayerMap]") -> None:
    for layer in layers:
        terminal.heading(f"{layer.depth}  {layer.filename} ({layer.format}, {exact(layer.length)})")
        rows = [(f"{offset:#x}", f"{nbytes:#x}", exact(nbytes), kind) for offset, nbytes, kind in layer.runs()]
        terminal.table(("Offset", "Length", "", "Kind"), rows, right=("Offset", "Length", ""))
        terminal.print("")
