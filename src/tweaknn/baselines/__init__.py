"""What a user would do instead."""
