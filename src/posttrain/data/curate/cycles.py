"""Cycles of preferences: A before B, B before C, C before A.

A preference is in a cycle where both of its answers lie in one strongly connected component of the
graph of preferences.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from posttrain.data.curate.groups import numbered


def components(edges: np.ndarray) -> np.ndarray:
    """Which edges lie inside a strongly connected component. The graph does not tell which of these
    are right.

    Args:
        edges: [E, 2] from and to, numbers from 0; repeats may occur. An edge from a node to itself
            is in no component.
    Returns: [E] a number for each component, from 0 in the order of its first edge; -1 for edges
        that are in none.
    """
    component = np.full(len(edges), -1)
    rows = np.flatnonzero(edges[:, 0] != edges[:, 1])
    nodes, ends = np.unique(edges[rows], return_inverse=True)
    starts, ends = ends.reshape(-1, 2).T
    size = (len(nodes), len(nodes))
    graph = csr_array((np.ones(len(rows)), (starts, ends)), shape=size)
    _, of_node = connected_components(graph, connection="strong")
    inside = of_node[starts] == of_node[ends]
    component[rows[inside]] = numbered(of_node[starts[inside]])
    return component
