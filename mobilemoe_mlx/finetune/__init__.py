"""Fine-tuning: data sets of one's own, methods, and the memory that they take."""
