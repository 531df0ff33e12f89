"""The bench is no part of what is installed: it is imported from the checkout, behind all else."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
