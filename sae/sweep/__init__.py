"""Sweeps: SAEs that differ in some settings, trained together on one stream of activations."""
