"""Predict the memory and time of a run or a sweep before it starts (`python train.py plan`)."""
