"""What a run would do, write and cost, before anything is spent."""
