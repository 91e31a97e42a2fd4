"""README and docs as tests: whatever they tell a reader to type is typed here."""
