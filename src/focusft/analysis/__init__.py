"""Where the attention goes."""
