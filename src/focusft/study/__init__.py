"""`focusft study`: a grid of trained and evaluated models that can be stopped and extended."""
