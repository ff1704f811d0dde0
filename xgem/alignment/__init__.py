"""Joint generation: what several outputs share while they are sampled together. Not built yet.

Until it is, ``xgem.generate`` samples each output independently of the others, and says so in the metadata
(``joint: false``).
"""
