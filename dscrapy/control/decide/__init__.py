"""What commands lead to: pure functions that add to a decision."""
