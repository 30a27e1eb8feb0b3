"""The page that ends a simulation: one self-contained HTML file."""
