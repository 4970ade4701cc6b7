"""Configuration, models and the trainer."""
