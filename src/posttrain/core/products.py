"""How the matrix library adds. No torch here: it has to be told before its first product."""

from __future__ import annotations

import os

SWITCH, IN_ONE_ORDER = "MKL_CBWR", "AUTO,STRICT"


def fix_products() -> None:
    """Tell MKL to add in one order, whatever the number of rows beside a row. It listens until its
    first product; products of few rows take up to a fifth longer. What the user set stays.
    """
    os.environ.setdefault(SWITCH, IN_ONE_ORDER)
