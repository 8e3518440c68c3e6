"""Evaluation of trained SAEs: which metrics apply, baselines, intervals and the diagnosis."""
