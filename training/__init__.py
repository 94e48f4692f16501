"""Training: recipes, data, optimiser and the loop that keeps the encoders frozen."""
