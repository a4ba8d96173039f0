"""`python jobs/benchmark.py --device cuda ...` on the machine that has the GPU: the flags of `chexmask-u bench`."""

import sys

from chexmask_u.entry import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
