"""The folder of a run: its paths, its metrics file and its checkpoint files."""
