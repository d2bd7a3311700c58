"""Training: data to weights. One file a stage; `mame` runs them in order."""
