"""The pages, a file each; every one has `show()`."""
