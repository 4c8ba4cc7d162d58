"""One thread a process: tiny models spend their time on handing work over, and thread counts change
the last bits.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
