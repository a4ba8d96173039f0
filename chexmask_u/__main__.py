"""`python -m chexmask_u` is `chexmask-u`."""

import sys

from chexmask_u.entry import main

if __name__ == "__main__":
    sys.exit(main())
