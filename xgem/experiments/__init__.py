"""Published experiments as commands: plans, what they measure, and the papers' tables."""
