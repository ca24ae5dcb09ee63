"""The project breaks what it made: faults and bad inputs as data, one loop, one judgement."""
