"""Images and what is known of them. ``testset`` holds ground truth: it is for evaluation and the bench alone."""
