"""The loop, its plan and checkpoints, the losses, and the tasks that it trains."""
