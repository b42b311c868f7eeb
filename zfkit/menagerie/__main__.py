"""A worker of the cache: draws its share of a set and writes it to standard output."""

import sys

from .cache import send

if __name__ == "__main__":
    send(sys.argv[1], sys.stdout.buffer)
