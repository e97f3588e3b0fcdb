"""Restores images and estimates their blur: `python infer.py method=fast_em input=photo.jpg`."""

from codiffuse.cli import infer

if __name__ == "__main__":
    infer()
