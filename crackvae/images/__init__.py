"""Bytes to arrays: decoding, tiles, and synthetic concrete."""
