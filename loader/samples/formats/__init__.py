"""Batches in the shape that other code bases train on: ACT, diffusion_policy, LeRobot, IL-Studio."""
