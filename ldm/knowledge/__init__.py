"""What a model can draw, as a file beside its weights says: ideas for prompts, and what to do about unknown words."""
