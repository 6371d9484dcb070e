"""From a user's words to a module and a data set."""
