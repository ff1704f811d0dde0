"""Checkpoint folders: locate, read, verify and write them; the states of trainings."""
