"""The helper lies beside this file, which importlib mode does not put on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
