"""What every test shares: real parts, one thread of torch each (two cores are often all there is)."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
