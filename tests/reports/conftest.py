"""The helper lies with the tests of analysis, which importlib mode does not put on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "analysis"))
