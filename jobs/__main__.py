"""`python -m jobs` is `layerrank`."""

from layerrank import main

if __name__ == "__main__":
    main()
