"""Requests and items as JSON that any process of their job can read."""
