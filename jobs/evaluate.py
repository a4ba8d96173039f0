"""`ray job submit --working-dir . -- python jobs/evaluate.py ...`: the flags of `chexmask-u evaluate`."""

import sys

from chexmask_u.entry import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
