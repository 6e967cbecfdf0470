"""Drain: stop new requests at the backends, wait until nothing is in flight below, and let them go on afterwards."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aioblock.core.node import BlockNode, Gate

__all__ = ["drained", "subtree"]


def subtree(root: BlockNode) -> list[BlockNode]:
    """`root` and every node below it, each once, parents before children."""
    found: dict[BlockNode, None] = {}
    todo = [root]
    while todo:
        node = todo.pop()
        if node not in found:
            found[node] = None
            todo.extend(child.node for child in node.children.values())
    return list(found)


def _gates_above(nodes: Iterable[BlockNode]) -> list[Gate]:
    """The gates of every backend from which one of the nodes can be reached."""
    above: dict[BlockNode, None] = {}
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in above:
            above[node] = None
            todo.extend(edge.parent for edge in node.parents if edge.parent is not None)
    return [gate for node in above for gate in node.gates]


@asynccontextmanager
async def drained(root: BlockNode) -> AsyncIterator[None]:
    """Inside, nothing is in flight on `root` or below, and no backend lets a request through that could reach it.

    Cancelled while it waits: everything goes on as before.
    """
    nodes = subtree(root)
    gates = _gates_above(nodes)
    for gate in gates:
        gate.stop()
    begun: list[BlockNode] = []
    for node in nodes:
        node.driver.let_go()
    try:
        for gate in gates:
            await gate.idle()
        for node in nodes:
            node.quiesced += 1
            begun.append(node)
            await node.driver.drain_begin()
        while any(node.requests for node in nodes):
            for node in nodes:
                await node.requests.idle()
        yield
    finally:
        for node in begun:
            node.quiesced -= 1
            node.driver.drain_end()
        for node in nodes:
            node.driver.hold_back()
        for gate in gates:
            gate.go_on()
