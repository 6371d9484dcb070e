"""Complexity-aware training: gates, expected complexity, surgery."""
