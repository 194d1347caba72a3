"""Get GLM-4.6 or GLM-4.5V up on whatever machine you have."""
