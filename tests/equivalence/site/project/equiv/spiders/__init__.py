"""The project's spiders; whatever the order of pages, the items are the same."""
