"""`ray job submit --working-dir . -- python jobs/train.py ...`: the flags of `chexmask-u train`."""

import sys

from chexmask_u.entry import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
