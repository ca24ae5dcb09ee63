"""`python -m jobs`, in a checkout, is `layerrank`."""

from layerrank.__main__ import main

if __name__ == "__main__":
    main()
