"""`ray job submit --working-dir . -- python jobs/publish.py ...`: the flags of `chexmask-u publish`."""

import sys

from chexmask_u.entry import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
