"""Families of measures over a real and a generated set: each module's ``evaluate`` returns a ``FamilyResult``."""
