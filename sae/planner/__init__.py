"""What a run or a sweep takes, said before it starts: `python train.py plan`."""
