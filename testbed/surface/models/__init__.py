"""What is known of the channels: geometry → statistics → rates in closed form, differentiable and batched."""
