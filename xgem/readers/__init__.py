"""Reader studies: real and synthetic items shown blind, readers' answers, and their report."""
