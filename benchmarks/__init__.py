"""What interlace costs, against a bare call of the model and against hooks written by hand."""
