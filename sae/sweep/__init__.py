"""Grids of autoencoders: `python train.py sweep`, and `tune` through Ray."""
