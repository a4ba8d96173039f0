"""`ray job submit --working-dir . -- python jobs/release.py ...`: the flags of `chexmask-u release`."""

import sys

from chexmask_u.entry import main

if __name__ == "__main__":
    sys.exit(main(["release", *sys.argv[1:]]))
