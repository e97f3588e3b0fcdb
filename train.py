"""Trains one network: `python train.py model=image_score data=bsds400`."""

from codiffuse.cli import train

if __name__ == "__main__":
    train()
