"""What runs work in tests: this process, one that lives on, clusters of this machine."""
