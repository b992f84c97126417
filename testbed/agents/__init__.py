"""Reinforcement learning of beams (paper E): environment, multi-agent SAC with LSTM, TD3, PPO, and reference beams.

The equations are those of the project's model description, because the paper's own are not available. Every module
here imports torch when it is imported, so the rest of the testbed imports these modules only where it uses them.
"""
