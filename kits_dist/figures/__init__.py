"""Pictures: slices with contours, rendered surfaces, charts, and the template of the report."""
