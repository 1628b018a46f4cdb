"""Rows -> tokenised documents in a memory-mapped store -> packs; and the audit of all of it."""
