"""`python -m llmgym`: the command line."""

import sys

from llmgym.cli import main

sys.exit(main())
