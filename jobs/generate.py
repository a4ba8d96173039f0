"""`ray job submit --working-dir . -- python jobs/generate.py ...`: the flags of `chexmask-u generate`."""

import sys

from chexmask_u.entry import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
