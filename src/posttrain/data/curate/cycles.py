"""Cycles of preferences: A before B, B before C, C before A.

They are what lies inside a strongly connected component.

Tarjan 1972, without recursion. Most preferences are in no cycle: answers that never win, or never
lose, are taken away first.
"""

from __future__ import annotations

import numpy as np

# rounds of taking away what cannot be in a cycle; a longer chain is left to the search itself
TRIMS = 30


def components(edges: np.ndarray) -> np.ndarray:
    """Which edges lie inside a strongly connected component: among them there is no saying which
    are right.

    Args:
        edges: [E, 2] from and to, numbers from 0; repeats may occur. An edge from a node to itself
            is in no component.
    Returns: [E] a number for each component, from 0 in the order of its first edge; -1 for edges
        that are in none.
    """
    out = np.full(len(edges), -1)
    rest = np.flatnonzero(edges[:, 0] != edges[:, 1])
    for _ in range(TRIMS):
        some = edges[rest]
        stays = np.isin(some[:, 0], some[:, 1]) & np.isin(some[:, 1], some[:, 0])
        if stays.all():
            break
        rest = rest[stays]
    if not len(rest):
        return out
    names, numbers = np.unique(edges[rest], return_inverse=True)
    numbers = numbers.reshape(-1, 2)
    component = np.array(_tarjan(numbers, len(names)))
    inside = component[numbers[:, 0]] == component[numbers[:, 1]]
    found, first, inverse = np.unique(
        component[numbers[inside, 0]], return_index=True, return_inverse=True
    )
    order = np.empty(len(found), np.int64)
    order[np.argsort(first, kind="stable")] = np.arange(len(found))
    out[rest[inside]] = order[inverse]
    return out


def _tarjan(edges: np.ndarray, count: int) -> list[int]:
    """[count] the component of every node."""
    order = np.argsort(edges[:, 0], kind="stable")
    targets = edges[order, 1].tolist()
    starts = np.searchsorted(edges[order, 0], np.arange(count + 1)).tolist()
    index, low, component = [-1] * count, [0] * count, [-1] * count
    stack: list[int] = []
    seen = found = 0
    for root in range(count):
        if index[root] >= 0:
            continue
        work = [(root, starts[root])]
        while work:
            node, at = work.pop()
            if at == starts[node]:
                index[node] = low[node] = seen
                seen += 1
                stack.append(node)
            else:  # back from the target before
                low[node] = min(low[node], low[targets[at - 1]])
            while at < starts[node + 1]:
                target = targets[at]
                at += 1
                if index[target] < 0:
                    work += [(node, at), (target, starts[target])]
                    break
                if component[target] < 0:
                    low[node] = min(low[node], index[target])
            else:
                if low[node] == index[node]:
                    while component[node] < 0:
                        component[stack.pop()] = found
                    found += 1
    return component
