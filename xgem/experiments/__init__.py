"""The experiments of XGeM, ChexGen and CheXGenBench: each a plan in ``xgem/configs/experiments``."""

from typing import Final

MEANS_NOTHING: Final = (
    "Debug size: networks of a few steps on a few studies. These numbers show that the experiment runs, and mean "
    "nothing."
)
"""What every table of debug size says."""
