"""Stage 3: label maps in, a labelled dataset of generated street images out."""
