"""`python -m s4nd.train CONFIG [key=value ...]`, as `s4nd train` does; what torchrun starts."""

import sys

from s4nd.train.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
