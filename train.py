"""Train a policy from a checkout: what `llmgym train` does."""

import sys

from llmgym import train

COMMAND = "python train.py"
__doc__ = train.described(COMMAND)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return train.main(sys.argv[1:] if argv is None else argv, COMMAND)


if __name__ == "__main__":
    sys.exit(main())
