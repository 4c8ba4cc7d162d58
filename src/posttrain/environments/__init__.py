"""What a policy acts in, and what its actions are worth."""
