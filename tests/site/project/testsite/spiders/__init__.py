"""The spiders of the test project."""
