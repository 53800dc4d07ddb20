"""`statecore inspect tree`: the prefix tree, run by run.

Owns which nodes are shown when there are too many: the ones nearest to the root first, and a line where some are left
out, so that nothing is missing silently.
"""

from __future__ import annotations

import sys
from collections import deque

import click
from rich.text import Text
from rich.tree import Tree

from events.facts import BLOCK_HASH_BYTES
from ops.cli.inspect.view import View, copy_marks, inspect_options, opened_view
from ops.cli.output import count, number, show, write_json
from ops.cli.source import Where
from ops.cli.words import block_words, hash_words
from statecore.rejections import UnknownPool
from statecore.state import Copy, Node

_NODES_SHOWN = 200  # a few screens; --json has no such bound


@click.command(short_help="The prefix tree: runs, their copies, who uses them.")
@inspect_options
@click.option("--pool", metavar="NAME", help="Only what has a copy in this pool.")
@click.option("--depth", "levels", type=click.IntRange(min=1), metavar="N", help="Only N levels below the root.")
@click.option(
    "--max-nodes", type=click.IntRange(min=1), metavar="N",
    help=f"Show at most N nodes, those nearest to the root first (default: {_NODES_SHOWN}; with --json all).",
)  # fmt: skip
def command(
    where: Where, at: int | None, as_json: bool, pool: str | None, levels: int | None, max_nodes: int | None
) -> None:
    """The prefix tree. A node is a run of blocks that prompts share as a whole.

    \b
    node 4  blocks 3-7  5 blocks c228cb46…      its place on the path, and its content
      gpu:engine-0 12-16                        its blocks in that pool
      refs 2, last used 118                     requests and transfers that use it; position of the last use
      pending (engine-0)                        that engine still computes its bytes
      filling (engine-0:3)                      that transfer brings its bytes
      leaving (engine-0:4)                      that swap-out takes it away, unless it is used again

    \b
    Examples:
      statecore inspect tree --depth 2
      statecore inspect tree --pool gpu:engine-0 --at 1200 --json
    """
    with opened_view(where, at) as view:
        if pool is not None and pool not in view.state.pools:
            raise UnknownPool(pool, tuple(sorted(view.state.pools)))
        shown = _choose(view.state.root, pool, levels, max_nodes or (sys.maxsize if as_json else _NODES_SHOWN))
        if as_json:
            write_json(
                {
                    "index": view.index,
                    "position": view.state.position,
                    "nodes_total": len(view.state.nodes) - 1,
                    "nodes": [_as_dict(node, pool) for node in shown],
                }
            )
        else:
            show(_drawn(view, shown, pool))


def _choose(root: Node, pool: str | None, levels: int | None, most: int) -> list[Node]:
    """Nodes to show, nearest to the root first."""
    chosen: list[Node] = []
    waiting = deque((child, 1) for child in _children(root, pool))
    while waiting and len(chosen) < most:
        node, level = waiting.popleft()
        chosen.append(node)
        if levels is None or level < levels:
            waiting.extend((child, level + 1) for child in _children(node, pool))
    return chosen


def _children(node: Node, pool: str | None) -> list[Node]:
    """By id, that is, by age."""
    children = [child for child in node.children.values() if pool is None or pool in child.copies]
    return sorted(children, key=lambda child: child.id)


def _drawn(view: View, shown: list[Node], pool: str | None) -> Tree:
    total = len(view.state.nodes) - 1
    of_pool = "" if pool is None else f", pool {pool}"
    drawn = Tree(f"{view.title('Tree')}{of_pool}: {number(len(shown))} of {count(total, 'node')}", guide_style="dim")
    branches = {view.state.root.id: drawn}
    for node in shown:
        assert node.parent is not None
        branches[node.id] = branches[node.parent.id].add(_label(node, pool))
    for node_id, branch in branches.items():
        hidden = sum(child.id not in branches for child in _children(view.state.nodes[node_id], pool))
        if hidden:
            branch.add(Text(f"… {number(hidden)} more below", style="dim"))
    return drawn


def _label(node: Node, pool: str | None) -> Text:
    label = Text.assemble(
        (f"node {node.id}", "bold"),
        f"  blocks {block_words(((node.start, node.end - node.start),))}  ",
        (hash_words(node.hashes), "dim"),
    )
    for name, copy in sorted(node.copies.items()):
        if pool in (None, name):
            label.append("  ")
            label.append_text(_copy_label(name, copy))
    return label


def _copy_label(pool: str, copy: Copy) -> Text:
    words = Text.assemble((pool, "cyan"), f" {block_words(copy.blocks)}")
    words.append(f" refs {copy.refs}, last used {copy.last_used}", style="green" if copy.refs else "")
    for mark in copy_marks(copy):
        words.append(f", {mark}", style="yellow")
    return words


def _as_dict(node: Node, pool: str | None) -> dict[str, object]:
    return {
        "node": node.id,
        "parent": None if node.parent is None else node.parent.id,
        "start": node.start,
        "end": node.end,
        "first_hash": node.hashes[:BLOCK_HASH_BYTES].hex(),
        "last_hash": node.hashes[-BLOCK_HASH_BYTES:].hex(),
        "children": [child.id for child in _children(node, pool)],
        "copies": [
            {
                "pool": name,
                "blocks": copy.blocks,
                "refs": copy.refs,
                "last_used": copy.last_used,
                "pending": copy.pending,
                "filling": copy.filling,
                "leaving": copy.leaving,
                "evictable": copy.evictable,
            }
            for name, copy in sorted(node.copies.items())
            if pool in (None, name)
        ],
    }
