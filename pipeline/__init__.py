"""What every stage of Streetforge shares, and the runner of all stages.

Stages never import each other. They meet in files: diffusers folders, dataset folders, score
files. This package imports none of them and nothing heavy at import time.
"""

__version__ = "0.1.0"
