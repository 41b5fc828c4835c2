"""Generate phantoms, CTs for real annotations, and deformed variants of annotated cases."""
