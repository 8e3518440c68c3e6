"""Command line: one file a command, and the table that lists them."""
