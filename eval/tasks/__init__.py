"""One file a benchmark: what it asks, of which official files, and how its answers are judged."""
