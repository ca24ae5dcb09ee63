"""Everything that can break a run, tried: `make faults`."""
