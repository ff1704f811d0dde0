"""Curation: several sources become one set without duplicates and unfit images, each described and checked."""
