"""From files to forests: sources, rows, tokens, packing."""
