"""Reinforcement learning of beams: environment, multi-agent SAC with LSTM, TD3, PPO, and what they are held against.

Paper E; the equations are the reading of the project's model description, because the paper's own are lost. Every
module here imports torch when it is imported, so nothing else of the testbed imports one at its top.
"""
