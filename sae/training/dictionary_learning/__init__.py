"""Dictionary learning without gradients: alternating sparse coding and dictionary updates."""
