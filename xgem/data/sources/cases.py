"""Patients of the COVID-19 image data collection, inferred from the images' names.

Cohen et al., "COVID-19 Image Data Collection: Prospective Predictions Are the Future", MELBA 2020. The sets drawn from
it do not identify patients and share images; one rule for all keeps a patient in one split, also if sets are merged.
"""

from __future__ import annotations

import re

# The part of a name that distinguishes the images of one case: time, view, figure of a paper, number in a series
_IMAGE = re.compile(
    r"""(?:
        [-_](?:day-?\d|\d+-(?:hours|days)|(?:on-)?admission|prior|later|pa|aps?|left|right)(?![a-z])
        | [-_.](?:fig-?|gr?|(?<=_)f)\d | _lrg | \.pdf | \.webp
        | (?<=\d)[-_]\d+(?:_\d+)?(?=$|-(?:pa|aps?|later)(?![a-z]))
        | -[0-9a-f]{4}-\d$
        | (?<=case\d)[a-z]$
    ).*""",
    re.IGNORECASE | re.VERBOSE,
)
# Series with other numbering, and the case reports (SIRM, 12 and 34) whose images have no common part in their names
_SERIES = ("auntminnie", "extubation", "immagine", "AR-")
_SAME = {
    "F2DE909F-E19C-4900-92F5-8F435B031AC6": "31BA3780-2323-493F-8AED-62081B9C383B",
    "F4341CE7-73C9-45C6-99C8-8567A5484B63": "E63574A7-4188-4C8D-8D17-9D67A18A1AFA",
}


def case_of(stem: str) -> str:
    """The subject of an image by its file stem; in doubt, two patients become one rather than one patient two."""
    series = next((name.rstrip("-") for name in _SERIES if stem.startswith(name)), None)
    return f"covid-cxr-{series or _IMAGE.sub('', _SAME.get(stem, stem)) or stem}"
