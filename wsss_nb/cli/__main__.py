"""``python -m wsss_nb.cli`` is ``wsss-nb``."""

import sys

from wsss_nb.cli import main

sys.exit(main())
