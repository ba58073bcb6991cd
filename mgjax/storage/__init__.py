"""Paths on disks and in buckets (gs://, s3://), behind one set of functions."""
