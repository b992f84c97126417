"""What the length rule grants, against what is true and what the best Eve guesses, over all cases."""
