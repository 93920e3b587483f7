"""The inside of pipeline/images.py, the reader of image files."""
