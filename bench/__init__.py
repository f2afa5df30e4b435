"""What nsorch costs, measured beside something that does the same without it: ``python -m bench``."""
