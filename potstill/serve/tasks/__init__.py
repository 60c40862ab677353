"""What a request asks of the model, and what the model's numbers mean: pure, without threads and without HTTP."""
