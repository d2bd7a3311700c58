"""Merging: weight files in, a weight file out, by a recipe that is plain data (`recipes/*.toml`)."""
