"""`ray job submit --working-dir . -- python jobs/experiment.py ...`: the flags of `chexmask-u experiment`."""

import sys

from chexmask_u.entry import main

if __name__ == "__main__":
    sys.exit(main(["experiment", *sys.argv[1:]]))
