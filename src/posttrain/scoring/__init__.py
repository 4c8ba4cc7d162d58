"""What a completion is worth: verifiers, learned rewards and users' own functions, and pairs from
scored completions.
"""
