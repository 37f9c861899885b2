"""Images and what is known of them: reading sets, splitting them by part, preparing them.

Import the modules directly: ``samples``, ``readers``, ``splits`` and ``public`` answer without torch, and the lists of
the command line without NumPy. ``testset`` holds ground truth and is for evaluation and the bench alone.
"""
