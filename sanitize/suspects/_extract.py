"""Entry of the child process: ``python -I -S _extract.py REQUEST.json OUTPUT_FOLDER``.

Run by path, so that nothing of `sanitize` outside `extract/` is imported in the child.
"""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(importlib.import_module("extract.command").main(sys.argv[1], sys.argv[2]))
