"""Measuring: what a picture shows, read by a judge that is not the model that drew it."""
