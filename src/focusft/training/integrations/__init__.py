"""FocuSFT inside trainers of other libraries."""
