"""``python -m ruprompt_fast.cli``."""

import sys

from ruprompt_fast.cli import main

sys.exit(main())
