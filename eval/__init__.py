"""The official numbers: predictions are written by `run`, judged by `score`, shown by `report`."""
