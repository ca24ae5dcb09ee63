"""What the intervals hold and what the advice costs, simulated from published layer scores."""
