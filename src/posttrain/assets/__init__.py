"""What ships inside the package: the embedded base model, and the curriculum it learned from."""
