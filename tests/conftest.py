"""One thread a process: tiny models spend their time on handing work over, and thread counts change
the last bits. No deadlines: a test measures numbers, and a busy machine may take its time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # heard before the first product alone
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
