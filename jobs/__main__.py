"""`python -m jobs` is `layerrank`."""

import sys

from layerrank import main

if __name__ == "__main__":
    sys.exit(main())
