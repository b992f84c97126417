"""The lengths that the rule grants, beside the true secret bits and the best Eve's guesses, over all cases."""
