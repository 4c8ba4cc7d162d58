"""The engine: one model, five verbs (score, forward_backward, step, sample, save/load), and the loop around them."""
