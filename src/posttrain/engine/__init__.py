"""The engine: one model, five verbs (score, forward_backward, step, sample, save/load), and the
loop around them.
"""

from __future__ import annotations

import os

# GNU OpenMP's threads wait for each other by spinning, for milliseconds. On a machine that has
# other work, too, that takes the very core they wait for: three times slower on two busy cores.
# After 20,000 turns (some tens of microseconds) they sleep; on an idle machine that costs nothing
# measurable. It must be set before torch is imported, and never against the user's own choice.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
