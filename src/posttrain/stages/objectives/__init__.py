"""Objectives: what a stage that trains on given answers learns, and from which rows."""
